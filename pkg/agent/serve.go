package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// serveOperator answers weftctl, for root only.
func (a *Agent) serveOperator(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, a.report(r.Context()), nil)
	})
	// ask is a question about what is in the switch, about an object or, when that is empty, about everything.
	ask := func(path string, read func(ctx context.Context, object string) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			a.mu.Lock()
			ready := a.ready
			a.mu.Unlock()
			if !ready {
				answer(w, nil, errors.New("the agent has not programmed the switch yet; see weftctl status"))
				return
			}
			v, err := read(r.Context(), r.URL.Query().Get("object"))
			answer(w, v, err)
		})
	}
	ask("/v1/flows", func(ctx context.Context, object string) (any, error) { return a.flowReports(ctx, object) })
	ask("/v1/policies", func(ctx context.Context, object string) (any, error) { return a.policyReports(ctx, object) })
	ask("/v1/services", func(ctx context.Context, object string) (any, error) { return a.serviceReports(ctx, object) })
	if err := os.MkdirAll(filepath.Dir(a.opt.OperatorSocket), 0o700); err != nil {
		return fmt.Errorf("serve weftctl: %w", err)
	}
	if err := os.Remove(a.opt.OperatorSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve weftctl: %w", err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", a.opt.OperatorSocket)
	if err != nil {
		return fmt.Errorf("serve weftctl: %w", err)
	}
	if err := os.Chmod(a.opt.OperatorSocket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("serve weftctl: %w", err), listener.Close())
	}
	return serve(ctx, listener, mux)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// The reader may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(v)
}

func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}
