-- One database per owner, so that neither migrates the other's tables.
CREATE DATABASE dagster;
CREATE DATABASE mlflow;
