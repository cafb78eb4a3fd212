package service

// Size is how many Services and slices a resolver remembers.
func (r *Resolver) Size() (services, slices int) { return len(r.byName), len(r.slices) }
