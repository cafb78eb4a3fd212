package ofswitch

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Fake is a switch in memory that behaves like a real one as far as flows go: bundles are atomic, a bundle with a flow
// that breaks the pipeline's contract or that Refuse names is rejected whole, watchers hear of every change. Any
// goroutine may use it.
type Fake struct {
	mu       sync.Mutex
	flows    map[openflow.Key]openflow.Flow
	watchers map[*watcher]bool
	down     bool
	refuse   func(openflow.Flow) bool
	applied  []flows.Delta
}

type watcher struct {
	events chan Event
	gone   chan struct{}
}

// NewFake gives an empty switch.
func NewFake() *Fake {
	return &Fake{flows: map[openflow.Key]openflow.Flow{}, watchers: map[*watcher]bool{}, refuse: func(openflow.Flow) bool { return false }}
}

var errDown = errors.New("the switch does not answer")

// Dump lists the flows.
func (s *Fake) Dump(context.Context) ([]openflow.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errDown
	}
	entries := make([]openflow.Entry, 0, len(s.flows))
	for _, f := range s.flows {
		entries = append(entries, openflow.Entry{Flow: f})
	}
	slices.SortFunc(entries, func(a, b openflow.Entry) int { return a.Compare(b.Key) })
	return entries, nil
}

// Apply makes the change, all of it or nothing.
func (s *Fake) Apply(_ context.Context, d flows.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errDown
	}
	for _, f := range d.Set {
		if err := flows.Check(f.Flow); err != nil {
			return &RejectedError{Detail: err.Error()}
		}
		if s.refuse(f.Flow) {
			return &RejectedError{Detail: "refused: " + f.String()}
		}
	}
	for _, f := range d.Delete {
		if s.flows[f.Key].Cookie == f.Cookie {
			s.remove(f.Key)
		}
	}
	for _, f := range d.Set {
		s.put(f.Flow)
	}
	s.applied = append(s.applied, d)
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

// Put adds or replaces a flow behind the back of whoever programs the switch.
func (s *Fake) Put(f openflow.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(f)
}

// Remove deletes a flow behind the back of whoever programs the switch.
func (s *Fake) Remove(key openflow.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
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
func (s *Fake) Applied() []flows.Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.applied)
}

func (s *Fake) put(f openflow.Flow) {
	s.flows[f.Key] = f
	s.tell(Event{Table: f.Table, Match: f.Match, Actions: f.Actions})
}

func (s *Fake) remove(key openflow.Key) {
	if f, ok := s.flows[key]; ok {
		delete(s.flows, key)
		s.tell(Event{Deleted: true, Table: f.Table, Match: f.Match, Actions: f.Actions})
	}
}

func (s *Fake) tell(e Event) {
	for w := range s.watchers {
		w.events <- e
	}
}
