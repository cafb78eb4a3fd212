package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// source is an agent that names the object that it was asked for.
type source struct {
	err error
	// ended receives the end of a capture's context.
	ended chan error
}

func (source) Status(context.Context) report.Status { return report.Status{Node: "n1"} }

func (s source) Flows(_ context.Context, object string) ([]report.Flow, error) {
	return []report.Flow{{Owner: object}}, s.err
}

func (s source) Services(_ context.Context, object string) ([]report.Service, error) {
	return []report.Service{{Service: object}}, s.err
}

func (s source) Policies(_ context.Context, object string) ([]report.Policy, error) {
	return []report.Policy{{Policy: object}}, s.err
}

func (s source) Trace(context.Context) (walk.Node, error) {
	return walk.Node{Name: "n1", Pods: []walk.Pod{{Name: "shop/web", MAC: model.MAC{2, 3, 4, 5, 6, 7}}}}, s.err
}

// Capture sends a record with the request's words, and more until the context ends, unless there is an error.
func (s source) Capture(ctx context.Context, request capture.Request, sink capture.Sink) error {
	if s.err != nil {
		return s.err
	}
	if err := sink.Send(capture.Record{Ports: []capture.Port{{Name: request.At + " " + request.Peer}}}); err != nil {
		return err
	}
	if err := sink.Flush(); err != nil || request.Packets > 0 {
		return errors.Join(err, sink.Send(capture.Record{End: &capture.End{Reason: "enough"}}))
	}
	<-ctx.Done()
	s.ended <- ctx.Err()
	return ctx.Err()
}

func (s source) Plan(_ context.Context, request api.PlanRequest) (report.Plan, error) {
	changes := []report.OwnerChange{{Owner: string(request.Objects[0])}}
	return report.Plan{Changes: changes, Warnings: []string{fmt.Sprintln(request.Delete, request.All, request.Object)}},
		s.err
}

func (s source) Send(_ context.Context, request api.SendRequest) error {
	if request.Pod != "shop/web" {
		return fmt.Errorf("asked to send %+v", request)
	}
	return s.err
}

func (s source) Live() error { return s.err }

func (s source) Ready() error { return s.err }

// listen serves a handler on a socket until the test ends.
func listen(t *testing.T, handler http.Handler) api.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
	t.Cleanup(func() { _ = server.Close() })
	return api.Client{Socket: socket}
}

// TestClientAndHandler: each question reaches the source with its object, whatever characters that has, and the answer
// comes back.
func TestClientAndHandler(t *testing.T) {
	c := listen(t, api.Handler(source{}))
	if s, err := c.Status(t.Context()); err != nil || s.Node != "n1" {
		t.Errorf("status %+v, %v", s, err)
	}
	request := api.PlanRequest{Objects: []json.RawMessage{[]byte(`{"a":1}`)}, Delete: true, All: true, Object: "b"}
	if p, err := c.Plan(t.Context(), request); err != nil || p.Changes[0].Owner != `{"a":1}` || p.Warnings[0] != "true true b\n" {
		t.Errorf("plan %+v, %v", p, err)
	}
	if n, err := c.Trace(t.Context()); err != nil || n.Name != "n1" || n.Pods[0].MAC != (model.MAC{2, 3, 4, 5, 6, 7}) {
		t.Errorf("trace %+v, %v", n, err)
	}
	for pod, want := range map[string]bool{"shop/web": true, "shop/none": false} {
		if err := c.Send(t.Context(), api.SendRequest{Pod: pod}); (err == nil) != want {
			t.Errorf("send from %s: %v", pod, err)
		}
	}
	for _, object := range []string{"", "shop/web", "a&b=c d?#%"} {
		flows, err := c.Flows(t.Context(), object)
		if want := []report.Flow{{Owner: object}}; err != nil || !reflect.DeepEqual(flows, want) {
			t.Errorf("flows of %q: %+v, %v", object, flows, err)
		}
		services, err := c.Services(t.Context(), object)
		if want := []report.Service{{Service: object}}; err != nil || !reflect.DeepEqual(services, want) {
			t.Errorf("Services of %q: %+v, %v", object, services, err)
		}
		policies, err := c.Policies(t.Context(), object)
		if want := []report.Policy{{Policy: object}}; err != nil || !reflect.DeepEqual(policies, want) {
			t.Errorf("policies of %q: %+v, %v", object, policies, err)
		}
	}
}

// stale is a socket that a process that ended has left.
func stale(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return socket
}

// unknown is an agent of an API version that has none of the paths.
func unknown(t *testing.T, version string) api.Client {
	t.Helper()
	return listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if version != "" {
			w.Header().Set("Weft-Api-Version", version)
		}
		http.NotFound(w, r)
	}))
}

// TestPermission: a socket that is another user's is named first, with what to do.
func TestPermission(t *testing.T) {
	denied := api.Client{Socket: "/run/weft/agent.sock"}
	err := denied.NoAnswer(&url.Error{Op: "Get", URL: "http://agent/v1/status", Err: &net.OpError{Op: "dial",
		Err: os.NewSyscallError("connect", syscall.EACCES)}})
	if want := "cannot open /run/weft/agent.sock: permission denied; run as root"; err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestErrors: the source's own words reach the user; a missing agent is named.
func TestErrors(t *testing.T) {
	refusing := listen(t, api.Handler(source{err: errors.New("not programmed yet")}))
	garbage := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write([]byte("<html>")); err != nil {
			t.Error(err)
		}
	}))
	hangingUp := listen(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	missing := api.Client{Socket: filepath.Join(t.TempDir(), "none.sock")}
	for _, tc := range []struct {
		client api.Client
		want   string
	}{
		{refusing, "the agent says: not programmed yet"},
		{garbage, "read the agent's answer: "},
		{missing, "there is no socket " + missing.Socket + ": weft-agent has not started"},
		{api.Client{Socket: stale(t)}, "weft-agent does not run: no process listens on "},
		{hangingUp, "weft-agent at " + hangingUp.Socket + " closed the connection"},
		{unknown(t, "1"), "the agent is older than this program: it answers API version 1, which has no /v1/flows"},
		{unknown(t, ""), "the agent is older than this program: it answers API version 1, which has no /v1/flows"},
		{unknown(t, "99"), "the agent is newer than this program: it answers API version 99"},
	} {
		if _, err := tc.client.Flows(t.Context(), ""); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%v, want %q", err, tc.want)
		}
	}
	for name, check := range map[string]func(api.Client, context.Context) error{
		"live": api.Client.Live, "ready": api.Client.Ready} {
		if err := check(refusing, t.Context()); err == nil || err.Error() != "the agent says: not programmed yet" {
			t.Errorf("%s: %v", name, err)
		}
		if err := check(missing, t.Context()); err == nil {
			t.Errorf("%s without an agent: no error", name)
		}
		if err := check(listen(t, api.Handler(source{})), t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An agent that is not ready still says how it is.
	if s, err := refusing.Status(t.Context()); err != nil || s.Node != "n1" {
		t.Errorf("status %+v, %v", s, err)
	}
}

// TestCapture: records arrive as they are flushed; a client that stops ends the capture; a refusal is the agent's own.
func TestCapture(t *testing.T) {
	ended := make(chan error, 1)
	c := listen(t, api.Handler(source{ended: ended}))
	var got []capture.Record
	err := c.Capture(t.Context(), capture.Request{At: "shop/web", Peer: "a&b=c d?#%", Packets: 1}, func(r capture.Record) error {
		got = append(got, r)
		return nil
	})
	if err != nil || len(got) != 2 || got[0].Ports[0].Name != "shop/web a&b=c d?#%" || got[1].End.Reason != "enough" {
		t.Errorf("%v, %+v", err, got)
	}
	stop := errors.New("stop")
	if err := c.Capture(t.Context(), capture.Request{At: "shop/web"}, func(capture.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the callback's error", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the capture ended with %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Capture(ctx, capture.Request{At: "shop/web"}, func(capture.Record) error { cancel(); return nil }); !errors.Is(err,
		context.Canceled) {
		t.Errorf("%v, want that of the context", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the capture ended with %v", err)
	}
	none := func(r capture.Record) error { t.Errorf("record %+v", r); return nil }
	refusing := listen(t, api.Handler(source{err: errors.New("not programmed yet")}))
	if err := refusing.Capture(t.Context(), capture.Request{}, none); err == nil || err.Error() != "the agent says: not programmed yet" {
		t.Errorf("%v", err)
	}
	if err := unknown(t, "2").Capture(t.Context(), capture.Request{}, none); err == nil ||
		!strings.HasPrefix(err.Error(), "the agent is older than this program: it answers API version 2, which has no /v1/capture") {
		t.Errorf("%v", err)
	}
	cut := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write([]byte(`{"ports":[{"name":"x","link":"y"}]}` + "\n" + `{"pack`)); err != nil {
			t.Error(err)
		}
	}))
	if err := cut.Capture(t.Context(), capture.Request{}, func(capture.Record) error { return nil }); err == nil ||
		!strings.HasPrefix(err.Error(), "the capture was cut off") {
		t.Errorf("%v", err)
	}
}
