from vlm_core.cli import main

raise SystemExit(main())
