"""Conditional Context Optimization (CoCoOp)."""
