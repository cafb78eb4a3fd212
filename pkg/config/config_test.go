package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/model"
)

var compareAddrs = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

func TestEmptyFileIsTheDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing set\n", "---\n# mtu: 1400\n", "{}"} {
		got, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if d := cmp.Diff(Default(), got, compareAddrs); d != "" {
			t.Errorf("%q (-default +got):\n%s", text, d)
		}
	}
}

func TestEveryKeyIsRead(t *testing.T) {
	got, err := Parse([]byte(`
tunnelType: vxlan
datapath: netdev
mtu: 8950
egressMasquerade: false
nonMasqueradeCIDRs: [10.0.0.0/8, "2001:db8::/32"]
serviceCIDRs: [10.96.0.0/16]
externalIPs: false
nodePortAddresses: [192.0.2.0/24]
establishedConnections: keep
dnsServers: [other/dns, 192.0.2.53, "[2001:db8::53]:5353"]
transport: direct
directRoutes: none
encryption: wireguard
encryptionStrict: false
wireguardPort: 51820
apiServer: https://[2001:db8::1]:6443
ovsRunDir: /var/run/ovs
healthAddr: "[::1]:9000"
metricsAddr: 0.0.0.0:9471
nodeHealthAddr: 192.0.2.1:10256
peerProbes: false
logLevel: debug
logFormat: json
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		TunnelType:             model.VXLAN,
		Transport:              model.ModeDirect,
		DirectRoutes:           model.RoutesNone,
		Encryption:             EncryptionWireGuard,
		WireGuardPort:          51820,
		Datapath:               DatapathNetdev,
		MTU:                    8950,
		NonMasqueradeCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
		ServiceCIDRs:           []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		NodePortAddresses:      []string{"192.0.2.0/24"},
		EstablishedConnections: EstablishedKeep,
		DNSServers:             []string{"other/dns", "192.0.2.53", "[2001:db8::53]:5353"},
		APIServer:              "https://[2001:db8::1]:6443",
		OVSRunDir:              "/var/run/ovs",
		HealthAddr:             netip.MustParseAddrPort("[::1]:9000"),
		MetricsAddr:            netip.MustParseAddrPort("0.0.0.0:9471"),
		NodeHealthAddr:         netip.MustParseAddrPort("192.0.2.1:10256"),
		LogLevel:               slog.LevelDebug,
		LogFormat:              LogJSON,
	}
	if d := cmp.Diff(want, got, compareAddrs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"near miss of a value", "tunnelType: genev",
			`tunnelType: "genev" is not allowed; allowed: geneve, vxlan, gre, ipip; did you mean "geneve"?`},
		{"no near value", "datapath: dpdk", `datapath: "dpdk" is not allowed; allowed: system, netdev`},
		{"wrong case of a value", "logLevel: Debug",
			`logLevel: "Debug" is not allowed; allowed: debug, info, warn, error; did you mean "debug"?`},
		{"wrong case of a key", "tunneltype: vxlan",
			`unknown key "tunneltype" (with value "vxlan"); allowed: ` + strings.Join(keys(), ", ") +
				`; did you mean "tunnelType"?`},
		{"unknown key", "bridge: br0", `unknown key "bridge" (with value "br0"); allowed: ` + strings.Join(keys(), ", ")},
		{"YAML 1.1 boolean", "tunnelType: no", `tunnelType: false is not allowed; allowed: geneve, vxlan, gre, ipip`},
		{"quoted boolean", `egressMasquerade: "true"`, `egressMasquerade: "true" is not allowed; allowed: true or false`},
		{"no value", "mtu:",
			`mtu has no value; allowed: 0, or 576 to 65535 (at least 1280 where pods have IPv6 addresses); leave the key out for the default 0`},
		{"mtu too small", "mtu: 575",
			`mtu: 575 is not allowed; allowed: 0, or 576 to 65535 (at least 1280 where pods have IPv6 addresses)`},
		{"mtu too large", "mtu: 65536",
			`mtu: 65536 is not allowed; allowed: 0, or 576 to 65535 (at least 1280 where pods have IPv6 addresses)`},
		{"mtu as text", `mtu: "1400"`,
			`mtu: "1400" is not allowed; allowed: 0, or 576 to 65535 (at least 1280 where pods have IPv6 addresses)`},
		{"mtu with a fraction", `mtu: 1400.5`,
			`mtu: 1400.5 is not allowed; allowed: 0, or 576 to 65535 (at least 1280 where pods have IPv6 addresses)`},
		{"prefixes", `nonMasqueradeCIDRs: [10.0.0.1/8, foo, "::ffff:10.0.0.0/104"]`,
			`nonMasqueradeCIDRs: ["10.0.0.1/8","foo","::ffff:10.0.0.0/104"] is not allowed; allowed: a list of IPv4 and IPv6 prefixes; ` +
				`"10.0.0.1/8" has host bits set; write "10.0.0.0/8"; invalid CIDR "foo"; "::ffff:10.0.0.0/104" is IPv4 written as IPv6`},
		{"one prefix instead of a list", `nonMasqueradeCIDRs: 10.0.0.0/8`,
			`nonMasqueradeCIDRs: "10.0.0.0/8" is not allowed; allowed: a list of IPv4 and IPv6 prefixes`},
		{"token in clear text", "apiServer: http://10.0.0.1:6443",
			`apiServer: "http://10.0.0.1:6443" is not allowed; allowed: a URL, https://HOST or https://HOST:PORT, or nothing; the agent sends its token only over https`},
		{"password in a URL", "apiServer: https://a:b@10.0.0.1",
			`apiServer: "https://a:b@10.0.0.1" is not allowed; allowed: a URL, https://HOST or https://HOST:PORT, or nothing`},
		{"no URL", `apiServer: "https://10.0.0.1:port"`,
			`apiServer: "https://10.0.0.1:port" is not allowed; allowed: a URL, https://HOST or https://HOST:PORT, or nothing`},
		{"relative path", "ovsRunDir: run/openvswitch",
			`ovsRunDir: "run/openvswitch" is not allowed; allowed: an absolute path without . and ..`},
		{"unclean path", "ovsRunDir: /run/../etc",
			`ovsRunDir: "/run/../etc" is not allowed; allowed: an absolute path without . and ..`},
		{"address without a port", "healthAddr: 127.0.0.1",
			`healthAddr: "127.0.0.1" is not allowed; allowed: an IP address and a port, as 127.0.0.1:9470 or [::1]:9470`},
		{"port chosen by the kernel", "healthAddr: 127.0.0.1:0",
			`healthAddr: "127.0.0.1:0" is not allowed; allowed: an IP address and a port, as 127.0.0.1:9470 or [::1]:9470`},
		{"primary beside a range", `nodePortAddresses: [primary, 10.0.0.0/8]`,
			`nodePortAddresses: ["primary","10.0.0.0/8"] is not allowed; allowed: a list of IPv4 and IPv6 prefixes, or ["primary"]; "primary" must be the only entry`},
		{"no address of node ports", `nodePortAddresses: [secondary]`,
			`nodePortAddresses: ["secondary"] is not allowed; allowed: a list of IPv4 and IPv6 prefixes, or ["primary"]; invalid CIDR "secondary"`},
		{"hybrid without routes", "transport: hybrid\ndirectRoutes: none",
			"transport hybrid needs directRoutes node: the nodes of one subnet reach each other by routes of the agent"},
		{"WireGuard at a tunnel's port", "encryption: wireguard\nwireguardPort: 6081",
			"wireguardPort 6081 is the UDP port of a tunnel, which every node receives; take another"},
		{"no DNS server", "dnsServers: [dns]",
			`dnsServers: ["dns"] is not allowed; allowed: a list of Services, as "kube-system/kube-dns", and of IP addresses, ` +
				`with or without a port; "dns" is neither namespace/name of a Service nor an IP address`},
		{"no port for WireGuard", "wireguardPort: 0", "wireguardPort: 0 is not allowed; allowed: a UDP port, 1 to 65535"},
		{"another encryption", "encryption: ipsec", "encryption: \"ipsec\" is not allowed; allowed: none, wireguard"},
		{"transport as its old name", "transport: tunnel", `transport: "tunnel" is not allowed; allowed: overlay, direct, hybrid`},
		{"key twice", "mtu: 1400\nlogLevel: info\nmtu: 1500\n", `duplicate key "mtu", second one at line 3; keep one`},
		{"two documents", "mtu: 1400\n---\nmtu: 1500\n", "more than one YAML document; put all settings into one"},
		{"a list", "- mtu: 1400", `[{"mtu":1400}] is not a mapping of keys to values; write for example: tunnelType: geneve`},
		{"all at once", "mtu: 1\nmtu: 1400\nMTU: 2\ndatapath: kernel\n",
			"3 problems:\n  duplicate key \"mtu\", second one at line 2; keep one\n" +
				"  unknown key \"MTU\" (with value 2); allowed: " + strings.Join(keys(), ", ") + "; did you mean \"mtu\"?\n" +
				"  datapath: \"kernel\" is not allowed; allowed: system, netdev"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(tc.text))
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if err.Error() != tc.want {
				t.Errorf("got:  %v\nwant: %s", err, tc.want)
			}
			if d := cmp.Diff(Config{}, got, compareAddrs); d != "" {
				t.Errorf("something of a bad file is used:\n%s", d)
			}
		})
	}
}

func TestNotYAML(t *testing.T) {
	_, err := Parse([]byte("mtu: [1400"))
	if err == nil || !strings.HasPrefix(err.Error(), "not YAML: ") {
		t.Errorf("got %v", err)
	}
}

func TestLongValuesAreAbbreviated(t *testing.T) {
	_, err := Parse([]byte("datapath: " + strings.Repeat("x", 10000)))
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("got %v", err)
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "ConfigMap weft-config") {
		t.Errorf("missing file: got %v", err)
	}
	for text, want := range map[string]string{"mtu: 1400": "",
		"mtu: 1": "configuration " + file + ": mtu: 1 is not allowed"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(file)
		switch {
		case want == "" && (err != nil || c.MTU != 1400):
			t.Errorf("%s: got %+v, %v", text, c, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestDiff(t *testing.T) {
	after, err := Parse([]byte("tunnelType: vxlan\nnonMasqueradeCIDRs: [10.0.0.0/8]\nlogFormat: json\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{
		{Key: "tunnelType", Old: `"geneve"`, New: `"vxlan"`, Live: true},
		{Key: "nonMasqueradeCIDRs", Old: `[]`, New: `["10.0.0.0/8"]`, Live: true},
		{Key: "logFormat", Old: `"text"`, New: `"json"`},
	}
	if d := cmp.Diff(want, Diff(Default(), after)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if changes := Diff(after, after); len(changes) != 0 {
		t.Errorf("a configuration differs from itself: %v", changes)
	}
}

// TestKeys: every field has a key, every key has a field, and the text of a value parses to the same value.
func TestSettingsCoverTheStruct(t *testing.T) {
	fields := reflect.TypeFor[Config]()
	if fields.NumField() != len(settings) {
		t.Fatalf("%d fields, %d keys", fields.NumField(), len(settings))
	}
	for i, s := range settings {
		if tag := fields.Field(i).Tag.Get("json"); tag != s.key {
			t.Errorf("field %s has tag %q, its key is %q", fields.Field(i).Name, tag, s.key)
		}
		got, err := Parse([]byte(s.key + ": " + s.text(Default())))
		if err != nil {
			t.Errorf("the default of %s is refused: %v", s.key, err)
		}
		if changes := Diff(Default(), got); len(changes) != 0 {
			t.Errorf("the default of %s reads as something else: %v", s.key, changes)
		}
	}
}

// TestNodeHealthAddr: an empty address turns the server off.
func TestNodeHealthAddr(t *testing.T) {
	for text, want := range map[string]netip.AddrPort{"": netip.MustParseAddrPort("[::]:10256"), `nodeHealthAddr: ""`: {},
		"nodeHealthAddr: 127.0.0.1:1": netip.MustParseAddrPort("127.0.0.1:1")} {
		if got, err := Parse([]byte(text)); err != nil || got.NodeHealthAddr != want {
			t.Errorf("%q: %v, %v, want %v", text, got.NodeHealthAddr, err, want)
		}
	}
	for _, text := range []string{"nodeHealthAddr: 10256", `nodeHealthAddr: ":10256"`, `nodeHealthAddr: "[::]:0"`} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
