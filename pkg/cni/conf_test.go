package cni

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/model"
)

func TestParseConf(t *testing.T) {
	for _, tc := range []struct {
		name, conf string
		code       uint
		contains   string
	}{
		{"what libcni makes of ours",
			`{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "capabilities": {"mac": true}, "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "cni.dev/valid-attachments": null, "cni.dev/future": 1, "args": {"cni": {}, "other": {}}, "dns": {"domain": "x"}, "prevResult": null, "socket": "/s"}`, 0, ""},
		{"no version", `{"name": "weft"}`, 0, ""},
		{"not an object", `[]`, types.ErrDecodingFailure, "JSON object"},
		{"a version of the future", `{"cniVersion": "2.0.0"}`, types.ErrIncompatibleCNIVersion, "2.0.0"},
		{"a typo", `{"sockett": "/s"}`, types.ErrUnsupportedField, `"sockett" (value "/s")`},
		{"another case", `{"Socket": "/s"}`, types.ErrUnsupportedField, `"Socket"`},
		{"ipMasq", `{"ipMasq": true}`, types.ErrUnsupportedField, `"ipMasq" (value true)`},
		{"a capability we lack", `{"runtimeConfig": {"portMappings": []}}`, types.ErrUnsupportedField,
			`runtimeConfig.portMappings (value [])`},
		{"invalid runtimeConfig", `{"runtimeConfig": 1}`, types.ErrInvalidNetworkConfig, "runtimeConfig"},
		{"bad attachments", `{"cni.dev/valid-attachments": "all"}`, types.ErrInvalidNetworkConfig,
			"cni.dev/valid-attachments"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf, err := parseConf([]byte(tc.conf))
			if codeOf(err) != tc.code || err != nil && !strings.Contains(err.Error(), tc.contains) {
				t.Errorf("%v, want code %d and %q", err, tc.code, tc.contains)
			}
			if err == nil && (conf.CNIVersion == "" || conf.PrevResult != nil) {
				t.Errorf("%+v", conf)
			}
		})
	}
}

func TestValidAttachments(t *testing.T) {
	for _, tc := range []struct {
		conf string
		want int
	}{
		{`{}`, -1},
		{`{"cni.dev/valid-attachments": null}`, 0},
		{`{"cni.dev/valid-attachments": []}`, 0},
		{`{"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}], "cni.dev/attachments": []}`, 1},
		{`{"cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}]}`, 1},
	} {
		conf, err := parseConf([]byte(tc.conf))
		got := -1
		if conf.Valid != nil {
			got = len(*conf.Valid)
		}
		if err != nil || got != tc.want {
			t.Errorf("%s: %d, %v", tc.conf, got, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	k8s := "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c;X=y"
	mac := func(runtime, args string) (conf netConf) {
		conf.RuntimeConfig.MAC, conf.Args.CNI.MAC = runtime, args
		return conf
	}
	pod := model.PodRef{Namespace: "ns", Name: "pod", UID: "u"}
	for _, tc := range []struct {
		args    string
		conf    netConf
		pod     model.PodRef
		mac     string
		code    uint
		mention string
	}{
		{k8s, netConf{}, pod, "00:00:00:00:00:00", 0, ""},
		{k8s, mac("02:00:00:00:00:01", "02:00:00:00:00:02"), pod, "02:00:00:00:00:01", 0, ""},
		{k8s + ";MAC=02:00:00:00:00:03", mac("", "02:00:00:00:00:02"), pod, "02:00:00:00:00:02", 0, ""},
		{k8s + ";MAC=02:00:00:00:00:03", netConf{}, pod, "02:00:00:00:00:03", 0, ""},
		{k8s + ";MAC=nonsense", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidNetworkConfig,
			"MAC in CNI_ARGS"},
		{k8s, mac(model.RouterMAC.String(), ""), model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidNetworkConfig,
			"belongs to the node"},
		{k8s, mac("00:00:00:00:00:00", ""), model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidNetworkConfig,
			"invalid interface address"},
		{k8s, mac("33:33:00:00:00:01", ""), model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidNetworkConfig, "multicast"},
		{"", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidEnvironmentVariables, "Kubernetes only"},
		{"K8S_POD_NAME=p", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidEnvironmentVariables,
			"K8S_POD_NAMESPACE"},
		{"X=y", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidEnvironmentVariables, "CNI_ARGS"},
		{"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=a/b", netConf{}, model.PodRef{}, "00:00:00:00:00:00",
			types.ErrInvalidEnvironmentVariables, `invalid K8S_POD_NAME "a/b"`},
		{"K8S_POD_NAMESPACE=n s;K8S_POD_NAME=p", netConf{}, model.PodRef{}, "00:00:00:00:00:00",
			types.ErrInvalidEnvironmentVariables, "invalid K8S_POD_NAMESPACE"},
		{k8s + ";K8S_POD_UID=a\nb", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidEnvironmentVariables,
			"invalid K8S_POD_UID"},
		{"K8S_POD_NAMESPACE=ns", netConf{}, model.PodRef{}, "00:00:00:00:00:00", types.ErrInvalidEnvironmentVariables,
			"K8S_POD_NAME"},
	} {
		pod, mac, err := identity(tc.args, tc.conf)
		if pod != tc.pod || mac.String() != tc.mac || codeOf(err) != tc.code || err != nil &&
			!strings.Contains(err.Error(), tc.mention) {
			t.Errorf("%q: %v %v %v", tc.args, pod, mac, err)
		}
	}
}

func TestValidKey(t *testing.T) {
	for _, tc := range []struct {
		container, ifName string
		code              uint
	}{
		{strings.Repeat("a", 64), "eth0", 0},
		{"", "eth0", types.ErrUnknownContainer},
		{"../../etc", "eth0", types.ErrInvalidEnvironmentVariables},
		{strings.Repeat("a", 201), "eth0", types.ErrInvalidEnvironmentVariables},
		{"c", "eth0/..", types.ErrInvalidEnvironmentVariables},
		{"c", "eth\x00", types.ErrInvalidEnvironmentVariables},
		{"c", "", types.ErrInvalidEnvironmentVariables},
	} {
		if err := validKey(tc.container, tc.ifName); codeOf(err) != tc.code {
			t.Errorf("%.20q %q: %v, want code %d", tc.container, tc.ifName, err, tc.code)
		}
	}
}
