"""Writers: the result of a gate as text for a console, JSON, JUnit XML, Markdown or GitHub annotations."""
