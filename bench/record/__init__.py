"""What crosses processes and disks: frozen types of plain data."""
