package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAdvice: each way in which the API server cannot be asked has its own advice, and one that answers has none.
func TestAdvice(t *testing.T) {
	answer := func(status int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d}`, status)
		})
	}
	plain := func(status int) string {
		server := httptest.NewServer(answer(status))
		t.Cleanup(server.Close)
		return server.URL
	}
	unknown := httptest.NewTLSServer(answer(http.StatusOK))
	t.Cleanup(unknown.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],
		"clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ url, setting, want string }{
		"401":                      {plain(http.StatusUnauthorized), "x", "does not accept the agent's token"},
		"403":                      {plain(http.StatusForbidden), "x", "ClusterRole"},
		"another authority":        {unknown.URL, "x", "in the certificate"},
		"refused":                  {closed.URL, closed.URL, "does apiServer, " + closed.URL + ", lead to"},
		"refused, without a URL":   {closed.URL, "", "set apiServer to an address"},
		"an error of the server's": {plain(http.StatusInternalServerError), "x", ""},
	} {
		client, err := NewClient(tc.url, kubeconfig, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		got := Advice(fmt.Errorf("failed to list: %w", err), tc.setting)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %v: %q, want %q", name, err, got, tc.want)
		}
	}
	if got := Advice(nil, ""); got != "" {
		t.Errorf("without an error: %q", got)
	}
}
