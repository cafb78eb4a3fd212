package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
)

// Put adds one object or replaces it, and leaves the others as they are: Apply looks at all of them, which a
// measurement of one change must not wait for.
func (s *Store) Put(resource string, o Object) error {
	r, ok := resources[resource]
	if !ok {
		return fmt.Errorf("put into %s: the API has no such resource", resource)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kinds[resource] == nil {
		s.kinds[resource] = map[types.NamespacedName]*entry{}
	}
	s.set(resource, r, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, o)
	return nil
}
