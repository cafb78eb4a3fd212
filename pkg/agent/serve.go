package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/weft-cni/weft/pkg/report/api"
)

// serveOperator answers weftctl, for root only.
func (a *Agent) serveOperator(ctx context.Context) error {
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
	return serve(ctx, listener, operatorHandler(reporter{a}))
}

// operatorHandler serves reports, and the profiles of the Go runtime below /debug/pprof/: what the socket's one user,
// root, could read from the process's memory in any case.
func operatorHandler(source api.Source) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", api.Handler(source))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
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
