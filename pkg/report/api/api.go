// Package api is how an agent is asked for reports: HTTP with JSON over a Unix socket that is root's alone. It has both
// ends, the agent's Handler and the Client of weftctl. It keeps no state and starts no goroutine of its own.
package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/report"
)

// DefaultSocket is where the agent of a node listens.
const DefaultSocket = "/run/weft/agent.sock"

// The paths. Those of lists take a query objectKey=NAME, which limits the answer to what concerns that object.
const (
	pathStatus   = "/v1/status"
	pathFlows    = "/v1/flows"
	pathServices = "/v1/services"
	pathPolicies = "/v1/policies"
	pathLive     = "/v1/live"
	pathReady    = "/v1/ready"
	objectKey    = "object"
)

// timeout bounds one question: a large switch takes seconds to read.
const timeout = time.Minute

// Source is an agent. Its methods may be called at any moment and from several goroutines. An error is a sentence for
// the user. An empty object means everything.
type Source interface {
	// Status answers always; what is not known yet is left out.
	Status(ctx context.Context) report.Status
	Flows(ctx context.Context, object string) ([]report.Flow, error)
	Services(ctx context.Context, object string) ([]report.Service, error)
	Policies(ctx context.Context, object string) ([]report.Policy, error)
	// Live returns why only a new process or container can help, or nil.
	Live() error
	// Ready returns why the node cannot attach pods, or nil.
	Ready() error
}

// Handler answers Clients. An error of the source becomes status 503 with its text.
func Handler(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, r *http.Request) {
		answer(w, source.Status(r.Context()), nil)
	})
	handle(mux, pathFlows, source.Flows)
	handle(mux, pathServices, source.Services)
	handle(mux, pathPolicies, source.Policies)
	for path, check := range map[string]func() error{pathLive: source.Live, pathReady: source.Ready} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { answer(w, true, check()) })
	}
	return mux
}

func handle[T any](mux *http.ServeMux, path string, read func(ctx context.Context, object string) ([]T, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		v, err := read(r.Context(), r.URL.Query().Get(objectKey))
		answer(w, v, err)
	})
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // it fails only when the client is gone
}

// Client asks the agent at a socket. Each call is one connection and takes at most a minute. Errors say what to do, or
// are the agent's own.
type Client struct{ Socket string }

// Status asks how the node is.
func (c Client) Status(ctx context.Context) (report.Status, error) {
	return get[report.Status](ctx, c, pathStatus, "")
}

// Flows asks for the flows in the switch, or for those that concern an object.
func (c Client) Flows(ctx context.Context, object string) ([]report.Flow, error) {
	return get[[]report.Flow](ctx, c, pathFlows, object)
}

// Services asks for the Services, or for those of a name.
func (c Client) Services(ctx context.Context, object string) ([]report.Service, error) {
	return get[[]report.Service](ctx, c, pathServices, object)
}

// Policies asks for the policies, or for those of a name.
func (c Client) Policies(ctx context.Context, object string) ([]report.Policy, error) {
	return get[[]report.Policy](ctx, c, pathPolicies, object)
}

// Live asks whether the agent works at all. The error is the agent's reason why not, or that it does not answer.
func (c Client) Live(ctx context.Context) error {
	_, err := get[bool](ctx, c, pathLive, "")
	return err
}

// Ready asks whether the node can attach pods. The error is the agent's reason why not, or that it does not answer.
func (c Client) Ready(ctx context.Context) error {
	_, err := get[bool](ctx, c, pathReady, "")
	return err
}

// get asks for a path, about an object if that is not empty.
func get[T any](ctx context.Context, c Client, path, object string) (v T, err error) {
	if object != "" {
		path += "?" + objectKey + "=" + url.QueryEscape(object)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.Socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return v, err
	}
	response, err := (&http.Client{Transport: transport, Timeout: timeout}).Do(request)
	if err != nil {
		return v, fmt.Errorf("the agent does not answer (does it run on this node, and are you root?): %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16)) // what could be read is the best message there is
		return v, fmt.Errorf("the agent says: %s", strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(response.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the agent's answer: %w", err)
	}
	return v, nil
}
