// Package apiserver is as much of a Kubernetes API server as the agent's informers need: list and watch of a few kinds,
// fed by callers of Apply, events, and patches of a Node's status.
//
// A Store holds the objects and the history of their changes; it may be used from any goroutine. Objects that were
// handed to it, or come from it, are never changed again.
package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
)

// Object is any of the API's objects.
type Object interface {
	metav1.Object
	runtime.Object
}

// history is how many changes a watch may lag behind; one that asks for older ones is told to list again.
const history = 10000

// maxEvents is how many of the agents' events are kept.
const maxEvents = 200

// Store holds the objects.
type Store struct {
	mu      sync.Mutex
	version uint64
	kinds   map[string]map[types.NamespacedName]*entry // by resource
	// changes are the last ones, oldest first; dropped says how many older ones are gone.
	changes []change
	dropped uint64
	moved   chan struct{} // closed, and replaced, with every change
	events  []*corev1.Event
}

// entry is an object and what it was when Apply brought it, before patches.
type entry struct{ applied, current Object }

type change struct {
	resource string
	kind     watch.EventType
	// object is the new one; of a deletion, the last one with the version of its deletion.
	object Object
}

// NewStore makes an empty store.
func NewStore() *Store {
	return &Store{kinds: map[string]map[types.NamespacedName]*entry{}, moved: make(chan struct{}), version: 1}
}

// Apply makes the objects of a resource these, and no others. What is as it was is not touched.
func (s *Store) Apply(resource string, objects []Object) error {
	r, ok := resources[resource]
	if !ok {
		return fmt.Errorf("apply %s: the API has no such resource", resource)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.kinds[resource]
	if have == nil {
		have = map[types.NamespacedName]*entry{}
		s.kinds[resource] = have
	}
	want := map[types.NamespacedName]bool{}
	for _, o := range objects {
		name := types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
		want[name] = true
		if e := have[name]; e == nil || !equal(e.applied, o) {
			s.set(resource, r, name, o)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(have), compareNames) {
		if !want[name] {
			s.delete(resource, name)
		}
	}
	return nil
}

// set stores a new or changed object. The caller holds the lock.
func (s *Store) set(resource string, r resourceInfo, name types.NamespacedName, applied Object) {
	current := copyOf(applied)
	kind := watch.Added
	if e := s.kinds[resource][name]; e != nil {
		kind = watch.Modified
		current.SetUID(e.current.GetUID())
		current.SetCreationTimestamp(e.current.GetCreationTimestamp())
	} else if created := current.GetCreationTimestamp(); created.IsZero() {
		current.SetCreationTimestamp(metav1.Now())
	}
	if applied.GetUID() != "" {
		current.SetUID(applied.GetUID())
	} else if current.GetUID() == "" {
		current.SetUID(uuid.NewUUID())
	}
	current.GetObjectKind().SetGroupVersionKind(r.gvk())
	s.kinds[resource][name] = &entry{applied: applied, current: current}
	s.publish(resource, kind, current)
}

func (s *Store) delete(resource string, name types.NamespacedName) {
	last := copyOf(s.kinds[resource][name].current)
	delete(s.kinds[resource], name)
	s.publish(resource, watch.Deleted, last)
}

// publish gives an object its version and tells the watchers. The caller holds the lock.
func (s *Store) publish(resource string, kind watch.EventType, o Object) {
	s.version++
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	s.changes = append(s.changes, change{resource, kind, o})
	if len(s.changes) > history {
		cut := len(s.changes) - history/2
		s.dropped += uint64(cut)
		s.changes = slices.Clone(s.changes[cut:])
	}
	close(s.moved)
	s.moved = make(chan struct{})
}

// Get returns an object as it is now.
func (s *Store) Get(resource string, name types.NamespacedName) (Object, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.kinds[resource][name]
	if !ok {
		return nil, false
	}
	return e.current, true
}

// List returns a resource's objects in the order of their names, and the version that the list is of.
func (s *Store) List(resource string) (objects []Object, version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.SortedFunc(maps.Keys(s.kinds[resource]), compareNames) {
		objects = append(objects, s.kinds[resource][name].current)
	}
	return objects, s.version
}

// Update replaces an object with what change makes of a copy of it.
func (s *Store) Update(resource string, name types.NamespacedName, change func(Object) (Object, error)) (Object, bool,
	error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.kinds[resource][name]
	if !ok {
		return nil, false, nil
	}
	next, err := change(copyOf(e.current))
	if err != nil {
		return nil, true, err
	}
	e.current = next
	s.publish(resource, watch.Modified, next)
	return next, true, nil
}

// since returns the changes after a version, and a channel that is closed when there are more. It is not ok when the
// history does not go back that far.
func (s *Store) since(version uint64) (changes []change, now uint64, more <-chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The first change has version 2, and every version is one change.
	first := s.dropped + 2
	if version+1 < first {
		return nil, s.version, s.moved, false
	}
	if skip := version + 1 - first; skip < uint64(len(s.changes)) {
		changes = slices.Clone(s.changes[skip:])
	}
	return changes, s.version, s.moved, true
}

// Events are the last ones that the agents wrote, oldest first.
func (s *Store) Events() []*corev1.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// addEvent keeps an event in the place of an older one of its name.
func (s *Store) addEvent(e *corev1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = slices.DeleteFunc(s.events, func(old *corev1.Event) bool {
		return old.Namespace == e.Namespace && old.Name == e.Name
	})
	s.events = append(s.events, e)
	if len(s.events) > maxEvents {
		s.events = slices.Clone(s.events[len(s.events)-maxEvents:])
	}
}
