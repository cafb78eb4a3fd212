package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"
)

// progress is what Up tells the person who waits, kept so that it can be read from the start.
type progress struct {
	mu    sync.Mutex
	steps []step
	moved chan struct{} // closed, and replaced, with every step
}

// step is one line of progress, or the end.
type step struct {
	Text  string `json:"text,omitempty"`
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

func newProgress() *progress { return &progress{moved: make(chan struct{})} }

func (p *progress) add(s step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steps = append(p.steps, s)
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *progress) say(format string, args ...any) { p.add(step{Text: fmt.Sprintf(format, args...)}) }

func (p *progress) finish(err error) {
	s := step{Done: true}
	if err != nil {
		s.Error = err.Error()
	}
	p.add(s)
}

func (p *progress) from(n int) ([]step, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.steps[n:], p.moved
}

// done tells whether the lab came up, which it has or has not once the last step is there.
func (p *progress) done() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.steps) > 0 && p.steps[len(p.steps)-1].Done && p.steps[len(p.steps)-1].Error == ""
}

func controlSocket(dir string) string { return filepath.Join(dir, "lab.sock") }

// serveControl answers weft-lab, for root only: the directory is closed to others.
func (l *Lab) serveControl(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/progress", l.serveProgress)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, l.status(r.Context())) })
	mux.HandleFunc("POST /v1/probe", l.serveProbe)
	mux.HandleFunc("POST /v1/keep", l.serveKeep)
	mux.HandleFunc("POST /v1/lie", l.serveLie)
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", controlSocket(l.dir))
	if err != nil {
		return fmt.Errorf("serve weft-lab: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve weft-lab: %w", err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader may be gone; there is no other reader
}

// serveProgress streams the steps until the lab is up or has failed.
func (l *Lab) serveProgress(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	for n := 0; ; {
		steps, more := l.progress.from(n)
		for _, s := range steps {
			if out.Encode(s) != nil || s.Done {
				return
			}
			n++
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

// client talks to a lab's daemon.
func client(dir string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialControl(ctx, dir) },
	}}
}

func dialControl(ctx context.Context, dir string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", controlSocket(dir))
}

// answers says why a lab's daemon cannot be talked to yet, or nil.
func answers(ctx context.Context, dir string) error {
	conn, err := dialControl(ctx, dir)
	if err != nil {
		return err
	}
	return conn.Close()
}
