"""Results as their reader meets them: small tables, data frames and figures."""
