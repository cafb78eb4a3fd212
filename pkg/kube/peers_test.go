package kube_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/kube"
)

const kubeconfig = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://localhost\"}}]\n" +
	"contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"

// TestPeers: a client that knows its server by name tells the address that it is connected to.
func TestPeers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
	}))
	defer server.Close()
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
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
	testenv.Until(t, "closed connections are forgotten", func() bool { return len(peers.Addrs()) == 0 })
}

// TestLostAddress: a request that waits for its answer, as a watch does, is sent again by a new connection when the
// node has lost the address that it came from; connections from other addresses stay.
func TestLostAddress(t *testing.T) {
	arrived := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.RemoteAddr
		<-r.Context().Done()
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	var peers kube.Peers
	client, err := kube.NewClient(server.URL, file, &peers)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = client.Discovery().RESTClient().Get().AbsPath("/").Do(ctx).Error() }()
	local, first := netip.MustParseAddr("127.0.0.1"), <-arrived
	if lost := peers.CloseFrom(func(a netip.Addr) bool { return a != local }); len(lost) > 0 || len(peers.Addrs()) != 1 {
		t.Errorf("another address was lost: closed the connections from %v, %v are left", lost, peers.Addrs())
	}
	if lost := peers.CloseFrom(func(a netip.Addr) bool { return a == local }); !slices.Equal(lost, []netip.Addr{local}) {
		t.Errorf("closed the connections from %v, want %v", lost, local)
	}
	select {
	case next := <-arrived:
		if next == first {
			t.Errorf("the request came by the old connection again")
		}
	case <-time.After(time.Minute):
		t.Error("the client has not connected again")
	}
}
