"""Faster closed loops with the same Gibbs measure: metrics, nonreversible drift, friction."""
