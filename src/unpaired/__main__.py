from unpaired.cli import main

raise SystemExit(main())
