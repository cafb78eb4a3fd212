// Package healthcheck answers load balancers that ask whether this node has endpoints of a Service: HTTP at the Service's
// healthCheckNodePort, on all addresses, in kube-proxy's words.
//
// A Server belongs to whoever calls it, from any goroutine; a mutex guards it. Each port has a goroutine that serves it, and a port
// that cannot be had is tried again from a timer. Nobody waits for a client.
package healthcheck

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Service is what there is to say about one Service.
type Service struct {
	Name      string // namespace/name
	Port      uint16 // its healthCheckNodePort
	Endpoints int    // ready ones on this node
}

// Options are what a Server needs to know. The zero value is good.
type Options struct {
	// Healthy says whether this node can serve Services at all; without it, always.
	Healthy func() bool
	// Problem is told why a Service's port cannot be served, when that changes, and nil once it is. It must not block, nor call the
	// Server.
	Problem func(service string, err error)
	// Retry is how long to wait before a port is tried again; 0 is 5 s.
	Retry time.Duration
	// Listen opens a port; nil is TCP on all addresses.
	Listen func(port uint16) (net.Listener, error)
}

// Server serves the ports that it was last told of.
type Server struct {
	opt Options

	mu     sync.Mutex
	wanted map[uint16]Service
	open   map[uint16]*opened
	// conflicts are the Services whose port another one has. failing is what was reported, by Service.
	conflicts map[string]error
	failing   map[string]string
	retry     *time.Timer
	closed    bool
	serving   sync.WaitGroup
}

// opened is a port that is served.
type opened struct {
	listener net.Listener
	server   *http.Server
}

// close closes the port and its connections. The listener is closed by itself, because the goroutine that serves it may not have
// begun to.
func (o *opened) close() {
	_ = o.listener.Close() // the server closes it, too
	_ = o.server.Close()
}

// New gives a server without ports.
func New(opt Options) *Server {
	if opt.Healthy == nil {
		opt.Healthy = func() bool { return true }
	}
	if opt.Problem == nil {
		opt.Problem = func(string, error) {}
	}
	if opt.Retry == 0 {
		opt.Retry = 5 * time.Second
	}
	if opt.Listen == nil {
		opt.Listen = func(port uint16) (net.Listener, error) { return net.Listen("tcp", fmt.Sprint(":", port)) }
	}
	return &Server{opt: opt, open: map[uint16]*opened{}, failing: map[string]string{}}
}

// Sync makes the server answer for these Services, whatever it did before. A port that stays, stays open, even when it is another
// Service's now. Of two Services with one port the first by name has it.
func (s *Server) Sync(services []Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wanted, s.conflicts = make(map[uint16]Service, len(services)), map[string]error{}
	for _, svc := range slices.SortedFunc(slices.Values(services), func(a, b Service) int { return strings.Compare(a.Name, b.Name) }) {
		if first, taken := s.wanted[svc.Port]; taken {
			s.conflicts[svc.Name] = fmt.Errorf("serve health check port %d: Service %s has the same port and goes before", svc.Port, first.Name)
		} else if svc.Port != 0 {
			s.wanted[svc.Port] = svc
		}
	}
	for port, o := range s.open {
		if _, ok := s.wanted[port]; !ok {
			delete(s.open, port)
			o.close()
		}
	}
	s.openAll()
}

// openAll opens what is not open yet, reports, and sees to it that what failed is tried again.
func (s *Server) openAll() {
	problems, again := maps.Clone(s.conflicts), false
	for _, port := range slices.Sorted(maps.Keys(s.wanted)) {
		if s.open[port] != nil {
			continue
		}
		listener, err := s.opt.Listen(port)
		if err != nil {
			again = true
			problems[s.wanted[port].Name] = fmt.Errorf("serve health check port %d: %w; it is tried again", port, err)
			continue
		}
		s.serve(port, listener)
	}
	for name := range s.failing {
		if problems[name] == nil {
			delete(s.failing, name)
			s.opt.Problem(name, nil)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		if text := problems[name].Error(); s.failing[name] != text {
			s.failing[name] = text
			s.opt.Problem(name, problems[name])
		}
	}
	if s.retry != nil {
		s.retry.Stop()
		s.retry = nil
	}
	if again {
		s.retry = time.AfterFunc(s.opt.Retry, s.tryAgain)
	}
}

func (s *Server) tryAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.openAll()
}

func (s *Server) serve(port uint16, listener net.Listener) {
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, port) }),
		ReadHeaderTimeout: 5 * time.Second, // anybody may connect
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // whatever a stranger sends is no news
	}
	o := &opened{listener, server}
	s.open[port] = o
	s.serving.Go(func() { s.lost(port, o, server.Serve(listener)) })
}

// lost is called when a port is served no longer. If nobody wanted that, it is opened again after a while.
func (s *Server) lost(port uint16, o *opened, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[port] != o {
		return
	}
	slog.Error("a health check port is served no longer; it is opened again", "port", port, "err", err)
	delete(s.open, port)
	o.close()
	if s.retry == nil {
		s.retry = time.AfterFunc(s.opt.Retry, s.tryAgain)
	}
}

func (s *Server) answer(w http.ResponseWriter, port uint16) {
	s.mu.Lock()
	svc, ok := s.wanted[port]
	s.mu.Unlock()
	if !ok {
		http.Error(w, "no Service has this health check port", http.StatusServiceUnavailable)
		return
	}
	healthy := s.opt.Healthy()
	namespace, name, _ := strings.Cut(svc.Name, "/")
	var body struct {
		Service struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}
	body.Service.Namespace, body.Service.Name = namespace, name
	body.LocalEndpoints, body.ServiceProxyHealthy = svc.Endpoints, healthy
	text, err := json.MarshalIndent(body, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(svc.Endpoints))
	status := http.StatusOK
	if svc.Endpoints == 0 || !healthy {
		status = http.StatusServiceUnavailable
	}
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone; there is nobody else to tell
}

// Close ends the server and returns when no port is served any more.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	if s.retry != nil {
		s.retry.Stop()
	}
	for port, o := range s.open {
		delete(s.open, port)
		o.close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}
