"""The embedded model: a tiny latent diffusion model of Stable Diffusion's topology, see README.md beside this file."""
