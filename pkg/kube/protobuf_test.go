package kube_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-cni/weft/pkg/kube"
)

// TestProtobuf: the API server is asked for protobuf, in lists and watches, and told things in JSON.
func TestProtobuf(t *testing.T) {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		t.Fatal("client-go knows no protobuf")
	}
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: "7"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			if body, err := io.ReadAll(r.Body); err != nil || !strings.HasPrefix(string(body), "{") {
				t.Errorf("patch %q, %v; want JSON", body, err)
			}
		} else if !strings.HasPrefix(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
			t.Errorf("%s %s accepts %q", r.Method, r.URL, r.Header.Get("Accept"))
		}
		encoder := scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion)
		var err error
		switch {
		case r.URL.Query().Get("watch") != "":
			w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
			var raw []byte
			if raw, err = runtime.Encode(encoder, &node); err == nil {
				frames := streaming.NewEncoder(info.StreamSerializer.NewFrameWriter(w), info.StreamSerializer)
				err = frames.Encode(&metav1.WatchEvent{Type: "ADDED", Object: runtime.RawExtension{Raw: raw}})
			}
		case r.Method == http.MethodPatch:
			w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
			err = encoder.Encode(&node, w)
		default:
			w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
			err = encoder.Encode(&corev1.NodeList{Items: []corev1.Node{node}}, w)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: \"" + server.URL +
		"\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClient("", config, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "n1" {
		t.Errorf("list = %v, %v", list, err)
	}
	changes, err := client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	if e, ok := (<-changes.ResultChan()).Object.(*corev1.Node); !ok || e.Name != "n1" {
		t.Errorf("event = %v", e)
	}
	if err := kube.SetNetworkAvailable(t.Context(), client, "n1"); err != nil {
		t.Error(err)
	}
}
