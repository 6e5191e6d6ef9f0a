"""The store's schema, one step at a time; `bond_core.store.migrate` runs them."""
