"""Every chart, as PNG and SVG files and for the report's page."""
