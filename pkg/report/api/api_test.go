package api_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
)

// source is an agent that names the object that it was asked for.
type source struct{ err error }

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

// TestErrors: the source's own words reach the user; a missing agent is named.
func TestErrors(t *testing.T) {
	refusing := listen(t, api.Handler(source{errors.New("not programmed yet")}))
	garbage := listen(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write([]byte("<html>")); err != nil {
			t.Error(err)
		}
	}))
	missing := api.Client{Socket: filepath.Join(t.TempDir(), "none.sock")}
	for _, tc := range []struct {
		client api.Client
		want   string
	}{
		{refusing, "the agent says: not programmed yet"},
		{garbage, "read the agent's answer: "},
		{missing, "the agent does not answer (does it run on this node, and are you root?): "},
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
