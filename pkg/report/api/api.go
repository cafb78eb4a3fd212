// Package api is how an agent is asked for reports: HTTP with JSON over a Unix socket that is root's alone. It has both
// ends, the agent's Handler and the Client of weftctl. It keeps no state and starts no goroutine of its own.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// DefaultSocket is where the agent of a node listens.
const DefaultSocket = "/run/weft/agent.sock"

// The paths. Those of lists take a query objectKey=NAME, which limits the answer to what concerns that object.
const (
	pathStatus   = "/v1/status"
	pathFlows    = "/v1/flows"
	pathServices = "/v1/services"
	pathPolicies = "/v1/policies"
	pathTrace    = "/v1/trace"
	pathPlan     = "/v1/plan"
	pathCapture  = "/v1/capture"
	pathSend     = "/v1/send"
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
	// Trace describes the node for pkg/trace/walk, with all flows of its switch.
	Trace(ctx context.Context) (walk.Node, error)
	// Plan says what would change on the node. It changes nothing.
	Plan(ctx context.Context, request PlanRequest) (report.Plan, error)
	// Capture sends records until a bound of the request is reached, the context ends or the sink fails. An error before
	// the first record is the answer.
	Capture(ctx context.Context, request capture.Request, sink capture.Sink) error
	// Send has the switch process a packet as if the pod had sent it.
	Send(ctx context.Context, request SendRequest) error
	// Live returns why only a new process or container can help, or nil.
	Live() error
	// Ready returns why the node cannot attach pods, or nil.
	Ready() error
}

// versionHeader carries report.APIVersion in every answer.
const versionHeader = "Weft-Api-Version"

// Handler answers Clients. An error of the source becomes status 503 with its text. Every answer carries the version of
// the API, also that to a path which this version does not have.
func Handler(source Source) http.Handler {
	mux := newMux(source)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(versionHeader, strconv.Itoa(report.APIVersion))
		mux.ServeHTTP(w, r)
	})
}

func newMux(source Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, r *http.Request) {
		answer(w, source.Status(r.Context()), nil)
	})
	handle(mux, pathFlows, source.Flows)
	handle(mux, pathServices, source.Services)
	handle(mux, pathPolicies, source.Policies)
	mux.HandleFunc("GET "+pathTrace, func(w http.ResponseWriter, r *http.Request) {
		v, err := source.Trace(r.Context())
		answer(w, v, err)
	})
	mux.HandleFunc("POST "+pathPlan, func(w http.ResponseWriter, r *http.Request) {
		request, err := readRequest[PlanRequest](w, r, maxPlan)
		if err != nil {
			return
		}
		v, err := source.Plan(r.Context(), request)
		answer(w, v, err)
	})
	mux.HandleFunc("POST "+pathCapture, func(w http.ResponseWriter, r *http.Request) { serveCapture(w, r, source) })
	mux.HandleFunc("POST "+pathSend, func(w http.ResponseWriter, r *http.Request) {
		request, err := readRequest[SendRequest](w, r, maxRequest)
		if err != nil {
			return
		}
		answer(w, true, source.Send(r.Context(), request))
	})
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

// Refusal is an agent's own answer that it cannot give another one.
type Refusal struct{ Text string }

func (r Refusal) Error() string { return "the agent says: " + r.Text }

// Client asks an agent. Each call is one connection and takes at most a minute. Errors say what to do, or are the
// agent's own.
type Client struct {
	// Socket is the agent's on this machine.
	Socket string
	// Dial connects to an agent elsewhere, instead of to Socket.
	Dial func(context.Context) (net.Conn, error)
}

// dial connects to the agent.
func (c Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.Socket)
}

// Connect opens a connection to the agent, whose protocol is HTTP.
func (c Client) Connect(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx, "", "")
	if err != nil {
		return nil, c.noAnswer(err)
	}
	return conn, nil
}

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

// Trace asks for what following packets through the node needs.
func (c Client) Trace(ctx context.Context) (walk.Node, error) {
	return get[walk.Node](ctx, c, pathTrace, "")
}

// SendRequest is the first packet of a connection of a pod.
type SendRequest struct {
	// Pod is namespace/name.
	Pod string `json:"pod"`
	// Source is one of the pod's addresses, with a port or, for ICMP, the identifier of the echo. Destination is where the
	// pod connects to; an echo request has port 0.
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Protocol    uint8          `json:"protocol"`
}

// Send asks the agent to send a packet from a pod of its node.
func (c Client) Send(ctx context.Context, request SendRequest) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = do[bool](ctx, c, http.MethodPost, pathSend, bytes.NewReader(body))
	return err
}

// PlanRequest asks what would change.
type PlanRequest struct {
	// Objects are as manifests have them.
	Objects []json.RawMessage `json:"objects"`
	// Delete asks for what would change if the objects were deleted, not applied.
	Delete bool `json:"delete,omitempty"`
	// All asks for the flows after the change, too: all, or those of Object.
	All    bool   `json:"all,omitempty"`
	Object string `json:"object,omitempty"`
}

// maxPlan bounds a PlanRequest in bytes.
const maxPlan = 16 << 20

// Plan asks what would change on the node if objects were applied or deleted.
func (c Client) Plan(ctx context.Context, request PlanRequest) (report.Plan, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return report.Plan{}, err
	}
	return do[report.Plan](ctx, c, http.MethodPost, pathPlan, bytes.NewReader(body))
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
	return do[T](ctx, c, http.MethodGet, path, http.NoBody)
}

// do asks, and reads the answer.
func do[T any](ctx context.Context, c Client, method, path string, body io.Reader) (v T, err error) {
	transport := &http.Transport{DialContext: c.dial, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return v, err
	}
	response, err := (&http.Client{Transport: transport, Timeout: timeout}).Do(request)
	if err != nil {
		return v, c.noAnswer(err)
	}
	defer response.Body.Close()
	if err := refusal(response, path); err != nil {
		return v, err
	}
	if err := json.NewDecoder(response.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the agent's answer: %w", err)
	}
	return v, nil
}

// refusal is the error of an answer that is none.
func refusal(response *http.Response, path string) error {
	switch response.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return otherVersion(response.Header.Get(versionHeader), path)
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16)) // what could be read is the best message there is
	return Refusal{strings.TrimSpace(string(text))}
}
