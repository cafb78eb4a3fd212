package apiserver

// History lets a test outrun it.
const History = history

// Smallest is the smallest object of a resource.
func Smallest(resource, name string) Object {
	r := resources[resource]
	o := r.empty()
	o.SetName(name)
	if r.namespaced {
		o.SetNamespace("ns")
	}
	return o
}
