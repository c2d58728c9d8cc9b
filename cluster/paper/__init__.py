"""The paper's six tables: what they hold, which trainings and measurements fill them, and how they are printed."""
