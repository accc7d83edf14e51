"""The bridge: what it decodes, answers, keeps and refuses."""
