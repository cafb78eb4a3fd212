// Package healthcheck answers load balancers that ask whether this node has endpoints of a Service: HTTP at the
// Service's healthCheckNodePort, on all addresses, in kube-proxy's format.
//
// A Server may be used from any goroutine; a mutex guards it. Each port has a goroutine that serves it, and a timer
// retries ports that cannot be opened. No call waits for a client.
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

// Service is a Service with a health check port.
type Service struct {
	Name      string // namespace/name
	Port      uint16 // the healthCheckNodePort
	Endpoints int    // the ready endpoints on this node
}

// Options configure a Server. The zero value is usable.
type Options struct {
	// Healthy reports whether this node can serve Services; nil means always.
	Healthy func() bool
	// Problem receives the reason why a Service's port cannot be served, when it changes, and nil once the port is
	// served. It must not block, nor call the Server.
	Problem func(service string, err error)
	// Retry is the interval between attempts to open a port; 0 is 5 s.
	Retry time.Duration
	// Listen opens a port; nil is TCP on all addresses.
	Listen func(port uint16) (net.Listener, error)
}

// Server serves the health check ports of the last Sync.
type Server struct {
	opt Options

	mu     sync.Mutex
	wanted map[uint16]Service
	open   map[uint16]*opened
	// conflicts are Services whose port another Service has. failing is the last reported problem by Service.
	conflicts map[string]error
	failing   map[string]string
	retry     *time.Timer
	closed    bool
	serving   sync.WaitGroup
}

// opened is a served port.
type opened struct {
	listener net.Listener
	server   *http.Server
}

// close closes the port and its connections. It closes the listener explicitly, because the goroutine that serves it
// may not have started.
func (o *opened) close() {
	_ = o.listener.Close() // the server also closes it
	_ = o.server.Close()
}

// New returns a server without ports.
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

// Sync sets the Services to answer for. Ports that stay are not closed, even when they now belong to another Service.
// Of two Services with one port, the first by name has it. Idempotent.
func (s *Server) Sync(services []Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.wanted, s.conflicts = make(map[uint16]Service, len(services)), map[string]error{}
	byName := func(a, b Service) int { return strings.Compare(a.Name, b.Name) }
	for _, svc := range slices.SortedFunc(slices.Values(services), byName) {
		if first, taken := s.wanted[svc.Port]; taken {
			s.conflicts[svc.Name] = fmt.Errorf("serve health check port %d: Service %s has the same port and takes precedence",
				svc.Port, first.Name)
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

// openAll opens missing ports, reports problems, and schedules a retry for failed ports.
func (s *Server) openAll() {
	problems, again := maps.Clone(s.conflicts), false
	for _, port := range slices.Sorted(maps.Keys(s.wanted)) {
		if s.open[port] != nil {
			continue
		}
		listener, err := s.opt.Listen(port)
		if err != nil {
			again = true
			problems[s.wanted[port].Name] = fmt.Errorf("serve health check port %d: %w; retrying", port, err)
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
		s.retry = time.AfterFunc(s.opt.Retry, s.reopen)
	}
}

func (s *Server) reopen() {
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
		ReadHeaderTimeout: 5 * time.Second, // any client may connect
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		// a client's invalid request is not worth a log record
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	o := &opened{listener, server}
	s.open[port] = o
	s.serving.Go(func() { s.lost(port, o, server.Serve(listener)) })
}

// lost handles the end of a port's server. Unless the port was closed on purpose, it is reopened after the retry
// interval.
func (s *Server) lost(port uint16, o *opened, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[port] != o {
		return
	}
	slog.Error("health check port lost; reopening", "port", port, "err", err)
	delete(s.open, port)
	o.close()
	if s.retry == nil {
		s.retry = time.AfterFunc(s.opt.Retry, s.reopen)
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
	_, _ = w.Write(text) // an error means that the client is gone
}

// Close stops the server and returns when no port is served any more.
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
