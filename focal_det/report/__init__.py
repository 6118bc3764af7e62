"""What a person looks at: figures, tables and pages."""

# Detectron2 is not required here: the curves of losses need torch alone.
