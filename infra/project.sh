#!/bin/sh
# Make the project folder ($VLM_ROOT, a volume) of a server, once: settings, DVC and git, so that dvc.lock and the branch vlm-snapshots outlive the
# containers. The code stays in the image; what is there already is left alone.
set -eu
code=$(cd "$(dirname "$0")/.." && pwd)
cd "${VLM_ROOT:?}"
for file in params.yaml dvc.yaml .dvcignore; do
  [ -e "$file" ] || cp "$code/$file" "$file"
done
for folder in vlm_core infra; do # stages of dvc.yaml name them as what they depend on
  [ -e "$folder" ] || ln -s "$code/$folder" "$folder"
done
mkdir -p data
[ -d .git ] || { printf '/data/\n/vlm_core\n/infra\n' > .gitignore; git init -q .; }
[ -d .dvc ] || { dvc init -q; cp "$code/.dvc/config" .dvc/config; }
