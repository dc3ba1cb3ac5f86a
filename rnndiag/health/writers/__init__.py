"""Writers: one judgement as text for a console, JSON, JUnit XML, Markdown or GitHub's annotations."""
