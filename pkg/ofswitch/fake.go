package ofswitch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Fake is a switch in memory that behaves like a real one as far as flows and groups go: bundles are atomic, a bundle
// with something that breaks the pipeline's contract, that Refuse names, or that uses a missing group is rejected
// whole, a deleted group takes its flows with it, watchers hear of every change. Any goroutine may use it.
type Fake struct {
	mu       sync.Mutex
	flows    map[openflow.Key]openflow.Flow
	groups   map[openflow.GroupID]openflow.Group
	watchers map[*watcher]bool
	down     bool
	refuse   func(openflow.Flow) bool
	applied  []openflow.Delta
	dumps    int
	idle     map[openflow.Key]uint16

	contract    func(openflow.Flow) error
	refuseGroup func(openflow.Group) bool
}

type watcher struct {
	events chan Event
	gone   chan struct{}
}

// NewFake returns an empty switch that rejects bundles with flows that break the contract (flows.Check). The contract
// of a group's actions is that of the tables whose flows use the group.
func NewFake(contract func(openflow.Flow) error) *Fake {
	return &Fake{contract: contract, flows: map[openflow.Key]openflow.Flow{},
		groups:   map[openflow.GroupID]openflow.Group{},
		watchers: map[*watcher]bool{}, idle: map[openflow.Key]uint16{},
		refuse:      func(openflow.Flow) bool { return false },
		refuseGroup: func(openflow.Group) bool { return false }}
}

var errDown = errors.New("the switch does not answer")

// Dump lists the flows and groups.
func (s *Fake) Dump(context.Context) (openflow.Contents, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return openflow.Contents{}, errDown
	}
	s.dumps++
	var c openflow.Contents
	for _, f := range s.flows {
		c.Flows = append(c.Flows, openflow.Entry{Flow: f, IdleTimeout: s.idle[f.Key]})
	}
	slices.SortFunc(c.Flows, func(a, b openflow.Entry) int { return a.Compare(b.Key) })
	for _, id := range slices.Sorted(maps.Keys(s.groups)) {
		c.Groups = append(c.Groups, s.groups[id])
	}
	return c, nil
}

// Apply makes the change, all of it or nothing.
func (s *Fake) Apply(_ context.Context, d openflow.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errDown
	}
	if d.Empty() {
		return nil
	}
	if err := s.check(d); err != nil {
		return &RejectedError{Detail: err.Error()}
	}
	for _, g := range d.SetGroups {
		s.putGroup(g)
	}
	for _, f := range d.Delete {
		if s.flows[f.Key].Cookie == f.Cookie {
			s.remove(f.Key)
		}
	}
	for _, forget := range d.Forget {
		for key, f := range s.flows {
			if f.Table == forget.Table && f.Cookie == forget.Cookie &&
				(forget.Match == (openflow.Match{}) || key == forget.Key) {
				s.remove(key)
			}
		}
	}
	for _, f := range d.Set {
		s.put(f)
	}
	for _, id := range d.DeleteGroups {
		s.removeGroup(id)
	}
	s.applied = append(s.applied, d)
	return nil
}

// check says why the switch rejects a bundle. As with a real one, only groups that flows use have to exist, not those
// that buckets use.
func (s *Fake) check(d openflow.Delta) error {
	set := map[openflow.GroupID]openflow.Group{}
	for _, g := range d.SetGroups {
		if s.refuseGroup(g) {
			return fmt.Errorf("refused: %s", g)
		}
		set[g.ID] = g
	}
	for _, f := range d.Set {
		if err := s.contract(f); err != nil {
			return err
		}
		if s.refuse(f) {
			return fmt.Errorf("refused: %s", f)
		}
		if err := s.checkGroups(f, set); err != nil {
			return err
		}
	}
	if len(set) == 0 {
		return nil
	}
	for _, f := range s.flows {
		if err := s.checkGroups(f, set); err != nil {
			return err
		}
	}
	return nil
}

// checkGroups says what is wrong with the groups that the flow uses, given those that a bundle sets.
func (s *Fake) checkGroups(f openflow.Flow, set map[openflow.GroupID]openflow.Group) error {
	for _, id := range f.Actions.Groups() {
		g, isSet := set[id]
		if _, exists := s.groups[id]; !exists && !isSet {
			return fmt.Errorf("OFPBAC_BAD_OUT_GROUP for: %s", f)
		}
		for _, b := range g.Buckets() {
			if err := s.contract(openflow.Flow{Key: openflow.Key{Table: f.Table}, Actions: b.Actions}); err != nil {
				return fmt.Errorf("group %d: %w", id, err)
			}
		}
	}
	return nil
}

// Watch tells of every change until the context ends or the switch goes down.
func (s *Fake) Watch(ctx context.Context, ready func(), changed func(Event)) error {
	w := &watcher{events: make(chan Event, 10000), gone: make(chan struct{})}
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		return errDown
	}
	s.watchers[w] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.gone:
			return errDown
		case e := <-w.events:
			changed(e)
		}
	}
}

// Put adds or replaces a flow as another program would.
func (s *Fake) Put(f openflow.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(f)
}

// Learn adds a flow as the switch itself does.
func (s *Fake) Learn(f openflow.Flow, idleTimeout uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle[f.Key] = idleTimeout
	s.put(f)
}

// Remove deletes a flow as another program would.
func (s *Fake) Remove(key openflow.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
}

// PutGroup adds or replaces a group as another program would.
func (s *Fake) PutGroup(g openflow.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putGroup(g)
}

// RemoveGroup deletes a group, and the flows that use it, as another program would.
func (s *Fake) RemoveGroup(id openflow.GroupID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeGroup(id)
}

// RefuseGroup makes the switch reject bundles with such groups from now on.
func (s *Fake) RefuseGroup(refuse func(openflow.Group) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuseGroup = refuse
}

// Refuse makes the switch reject bundles with such flows from now on.
func (s *Fake) Refuse(refuse func(openflow.Flow) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// Stop makes the switch go away with all its flows, as a restart of ovs-vswitchd does; Start brings it back empty.
func (s *Fake) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = true
	clear(s.flows)
	clear(s.groups)
	clear(s.idle)
	for w := range s.watchers {
		close(w.gone)
	}
	clear(s.watchers)
}

// Start is the opposite of Stop.
func (s *Fake) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// Applied lists the bundles that were accepted so far.
func (s *Fake) Applied() []openflow.Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.applied)
}

// Dumps counts how often the switch was read.
func (s *Fake) Dumps() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dumps
}

func (s *Fake) put(f openflow.Flow) {
	s.flows[f.Key] = f
	s.tell(Event{Table: f.Table, Match: f.Match, Actions: f.Actions})
}

func (s *Fake) remove(key openflow.Key) {
	if f, ok := s.flows[key]; ok {
		delete(s.flows, key)
		delete(s.idle, key)
		s.tell(Event{Deleted: true, Table: f.Table, Match: f.Match, Actions: f.Actions})
	}
}

func (s *Fake) putGroup(g openflow.Group) {
	s.groups[g.ID] = g
	s.tell(Event{Group: g})
}

// removeGroup deletes a group and, as OVS does, the flows that use it.
func (s *Fake) removeGroup(id openflow.GroupID) {
	if _, ok := s.groups[id]; !ok {
		return
	}
	delete(s.groups, id)
	s.tell(Event{Deleted: true, Group: openflow.Group{ID: id}})
	for key, f := range s.flows {
		if slices.Contains(f.Actions.Groups(), id) {
			s.remove(key)
		}
	}
}

func (s *Fake) tell(e Event) {
	for w := range s.watchers {
		w.events <- e
	}
}
