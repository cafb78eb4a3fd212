package cni

import (
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// FuzzRequest: for any request, the response is a CNI error with a code and a text, or the parsed values are safe to
// record, to name a link and to name a file.
func FuzzRequest(f *testing.F) {
	const k8s = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1-2"
	for _, conf := range []string{
		`{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "cni.dev/valid-attachments": null}`,
		`{"runtimeConfig": {"bandwidth": {"egressRate": 1}}, "args": {"cni": {"mac": "33:33:00:00:00:01"}}}`,
		`{"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}], "prevResult": {}}`,
		`[]`,
	} {
		f.Add([]byte(conf), k8s, "c1", "eth0")
	}
	f.Add([]byte(`{}`), "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a/b", "c1", "eth0")
	f.Add([]byte(`{}`), "K8S_POD_NAMESPACE=default;K8S_POD_NAME=caf\u00e9caf\u00e9", "c1", "eth0")
	f.Add([]byte(`{}`), k8s+";MAC=nonsense", "../../etc", "eth0/..")
	s := NewServer(Config{Settings: func() Settings { return Settings{NotReady: "test"} },
		Socket: f.TempDir() + "/s/cni.sock"})
	f.Fuzz(func(t *testing.T, raw []byte, args, container, ifName string) {
		// Run every command as far as it gets without a node.
		for _, command := range []string{"ADD", "CHECK", "DEL", "GC", "STATUS", ifName} {
			req := wire.Request{Command: command, ContainerID: container, IfName: ifName, Args: args, Config: raw,
				Netns: container}
			_, err := s.do(t.Context(), req, nil)
			if e := toCNI(err); err != nil && (e.Code == 0 || e.Msg == "") {
				t.Errorf("%s: error %+v", command, e)
			}
		}
		if err := validKey(container, ifName); err == nil {
			path := wire.Pending{ContainerID: container, IfName: ifName}
			if err := path.Write(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrPermission) &&
				len(container)+len(ifName) < 200 {
				t.Errorf("record the deletion of %q %q: %v", container, ifName, err)
			}
			if err := path.Remove(s.cfg.Socket); err != nil && len(container)+len(ifName) < 200 {
				t.Error(err)
			}
		}
		conf, err := parseConf(raw)
		if err != nil {
			return
		}
		pod, mac, err := identity(args, conf)
		if err != nil {
			return
		}
		if mac[0]&1 != 0 || mac == model.RouterMAC || mac == model.GatewayMAC {
			t.Errorf("MAC %s", mac)
		}
		name := hostIfName(pod, model.AttachmentKey{ContainerID: container, IfName: ifName}, 0)
		if len(name) > 15 || strings.ContainsAny(name, "/: .") || !utf8.ValidString(name) {
			t.Errorf("link name %q of pod %q", name, pod)
		}
		if validation.IsDNS1123Subdomain(pod.Name) != nil || validation.IsDNS1123Label(pod.Namespace) != nil {
			t.Errorf("pod %q", pod)
		}
		if back, err := model.ParsePodRef(pod.String()); err != nil || back.Name != pod.Name ||
			back.Namespace != pod.Namespace {
			t.Errorf("pod %q reads back as %q, %v", pod, back, err)
		}
		var e *types.Error
		if _, err := encodeResult(newResult(model.Attachment{MAC: mac}, nil, Settings{}, wire.Request{}, conf.DNS),
			conf.CNIVersion); err != nil && !errors.As(err, &e) {
			t.Errorf("result: %v", err)
		}
	})
}
