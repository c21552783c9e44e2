"""What a TouchDesigner project needs; see guide.md."""
