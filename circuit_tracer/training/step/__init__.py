"""What one step of training computes: active features, losses and every gradient, updates."""
