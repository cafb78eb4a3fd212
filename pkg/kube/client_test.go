package kube_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/pkg/kube"
)

func TestNewClientFromKubeconfig(t *testing.T) {
	store := apiserver.NewStore()
	if err := store.Apply(apiserver.Nodes,
		[]apiserver.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}}); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(store.Handler())
	defer server.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	write := func(url string) {
		t.Helper()
		text := fmt.Sprintf(
			"apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\n"+
				"contexts: [{name: c, context: {cluster: c}}]\n", url)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ name, inFile, server string }{{"the file's server", server.URL, ""},
		{"the setting goes before the file", "http://192.0.2.1", server.URL}} {
		write(tc.inFile)
		client, err := kube.NewClient(tc.server, file, nil)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if _, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{}); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := kube.NewClient("", filepath.Join(t.TempDir(), "none"), nil); err == nil ||
		!strings.Contains(err.Error(), "no such file") {
		t.Errorf("a kubeconfig that does not exist: %v", err)
	}
	if _, err := kube.NewClient("", "", nil); err == nil {
		t.Error("outside of a cluster there is a client without a kubeconfig")
	}
}
