package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Fault is what is wrong with the answers about one resource.
type Fault string

// The faults. All but Stalled also end the watches of the resource, so that its clients ask again.
const (
	Forbidden Fault = "forbidden" // lists and watches get 403
	Expired   Fault = "expired"   // a watch begins and ends at once with 410
	Closed    Fault = "closed"    // connections end without an answer
	Cut       Fault = "cut"       // lists break off in the middle; watches are as with Expired
	// lists have no items; watches are as with Expired, and so are later ones from their versions
	Empty   Fault = "empty"
	Stalled Fault = "stalled" // watches stay open and send nothing, and go on when the fault ends
)

// Lie is how a server's answers differ from the truth.
type Lie struct {
	// Older says that the server answers from the state that Keep kept, as after a restored backup: versions go backwards.
	Older bool `json:"older,omitempty"`
	// Resources are the faults by resource.
	Resources map[string]Fault `json:"resources,omitempty"`
}

// Server serves a Store, and lies when it is told to. It may be used from any goroutine.
type Server struct {
	store *Store

	mu    sync.Mutex
	kept  http.Handler
	lie   Lie
	lied  map[string]uint64 // by resource, the last version of lists that were empty
	moved chan struct{}     // closed, and replaced, with every change of the lie
}

// NewServer makes a server that tells the truth.
func NewServer(store *Store) *Server {
	return &Server{store: store, lied: map[string]uint64{}, moved: make(chan struct{})}
}

// Keep keeps the store's state, for lies that serve an older one.
func (s *Server) Keep() {
	kept := s.store.clone().Handler()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = kept
}

// Lie changes what the server lies about; the zero Lie is the truth. A server that begins or ends to answer from
// another state ends all watches, as one does that restarts.
func (s *Server) Lie(l Lie) error {
	for resource, fault := range l.Resources {
		if _, ok := resources[resource]; !ok {
			return fmt.Errorf("lie about %s: the API has no such resource", resource)
		}
		if !slices.Contains([]Fault{Forbidden, Expired, Closed, Cut, Empty, Stalled}, fault) {
			return fmt.Errorf("lie about %s: unknown fault %q", resource, fault)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.Older && s.kept == nil {
		return fmt.Errorf("serve an older state: none was kept")
	}
	for resource, fault := range s.lie.Resources {
		if fault == Empty && l.Resources[resource] != Empty {
			s.lied[resource] = s.store.skipVersion()
		}
	}
	s.lie = l
	close(s.moved)
	s.moved = make(chan struct{})
	return nil
}

func (s *Server) current() (lie Lie, kept http.Handler, moved <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lie, s.kept, s.moved
}

// fromLie says whether a watch would begin at a version that an empty list had.
func (s *Server) fromLie(resource, version string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := strconv.ParseUint(version, 10, 64)
	return err == nil && v <= s.lied[resource]
}

// ServeHTTP answers a request, with the truth or not.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	lie, handler, _ := s.current()
	if !lie.Older {
		handler = s.store.Handler()
	}
	resource := path.Base(req.URL.Path)
	r, ok := resources[resource]
	if !ok || req.Method != http.MethodGet {
		handler.ServeHTTP(w, req) // one object, or what an agent writes
		return
	}
	query := req.URL.Query()
	watching := query.Get("watch") == "true"
	switch fault := lie.Resources[resource]; {
	case fault == Forbidden:
		fail(w, apierrors.NewForbidden(schema.GroupResource{Group: r.group.Group, Resource: resource}, "",
			fmt.Errorf("the server lies")))
	case fault == Closed:
		panic(http.ErrAbortHandler)
	case watching && (fault != "" && fault != Stalled || s.fromLie(resource, query.Get("resourceVersion"))):
		w.Header().Set("Content-Type", "application/json")
		out := &stream{w: w, json: json.NewEncoder(w), r: r}
		out.send(watch.Error, expired("the server lies"))
	case watching:
		ctx, stop := context.WithCancel(req.Context())
		defer stop()
		go s.endWith(ctx, stop, lie.Older, resource)
		handler.ServeHTTP(&stalling{ResponseWriter: w, ctx: ctx, server: s, resource: resource}, req.WithContext(ctx))
	case fault == Cut:
		whole := httptest.NewRecorder()
		handler.ServeHTTP(whole, req)
		maps.Copy(w.Header(), whole.Header())
		w.WriteHeader(whole.Code)
		_, _ = w.Write(whole.Body.Bytes()[:whole.Body.Len()/2]) // the client may be gone
		(&stream{w: w}).flush()
		panic(http.ErrAbortHandler)
	case fault == Empty:
		empty := s.store.clone()
		delete(empty.kinds, resource)
		empty.serveCollection(w, req, resource, r)
	default:
		handler.ServeHTTP(w, req)
	}
}

// endWith ends a watch when the server answers from another state, or lies about its resource other than by silence.
func (s *Server) endWith(ctx context.Context, end func(), older bool, resource string) {
	for {
		lie, _, moved := s.current()
		if fault := lie.Resources[resource]; lie.Older != older || fault != "" && fault != Stalled {
			end()
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// stalling is the answer to a watch, which waits while the server lies by silence.
type stalling struct {
	http.ResponseWriter
	ctx      context.Context //nolint:containedctx // of the request that it answers
	server   *Server
	resource string
}

func (w *stalling) Write(p []byte) (int, error) {
	for {
		lie, _, moved := w.server.current()
		if lie.Resources[w.resource] != Stalled {
			return w.ResponseWriter.Write(p)
		}
		select {
		case <-moved:
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		}
	}
}

// Flush passes on what was written.
func (w *stalling) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// skipVersion goes on to a version that no answer has had, and returns the last one.
func (s *Store) skipVersion() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.changes = append(s.changes, change{}) // every version is one change; this one is of no resource
	return s.version - 1
}

// clone is a store with the same objects and history, which does not follow this one.
func (s *Store) clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := NewStore()
	c.version, c.dropped, c.changes = s.version, s.dropped, slices.Clone(s.changes)
	for resource, objects := range s.kinds {
		c.kinds[resource] = map[types.NamespacedName]*entry{}
		for name, e := range objects {
			copied := *e
			c.kinds[resource][name] = &copied
		}
	}
	return c
}
