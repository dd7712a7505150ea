"""How the native libraries are built: see docs/building.md."""
