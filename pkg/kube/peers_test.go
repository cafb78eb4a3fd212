package kube_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
)

// TestPeers: a client that knows its server by name tells the address that it is connected to.
func TestPeers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	file := filepath.Join(t.TempDir(), "config")
	config := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://localhost\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var peers kube.Peers
	client, err := kube.NewClient(server.URL, file, &peers)
	if err != nil {
		t.Fatal(err)
	}
	if got := peers.Addrs(); len(got) > 0 {
		t.Errorf("before it has connected: %v", got)
	}
	if err := client.Discovery().RESTClient().Get().AbsPath("/").Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	if got := peers.Addrs(); !slices.Equal(got, []netip.Addr{at.Addr()}) {
		t.Errorf("connected to %v, want %s", got, at.Addr())
	}
	server.CloseClientConnections()
	testenv.Eventually(t, "closed connections are forgotten", func() bool { return len(peers.Addrs()) == 0 })
}
