"""What a person looks at: figures, tables and pages."""

# No require_detectron2() here, unlike in most packages: loss curves are drawn without Detectron2.
