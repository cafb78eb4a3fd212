package config

import (
	"os"
	"strings"
	"testing"
)

// FuzzParse: any content of the ConfigMap gives an error of bounded length, or a configuration whose settings parse to
// the same values, one by one and as a file.
func FuzzParse(f *testing.F) {
	if page, err := os.ReadFile("../../docs/configuration.md"); err == nil {
		for _, block := range strings.Split(string(page), "```") {
			f.Add([]byte(strings.TrimPrefix(block, "yaml")))
		}
	}
	for _, text := range []string{
		"", "tunnelType: vxlan\nmtu: 1400\n", "mtu: 1e3", "mtu: 0x578", "a: &a [*a, *a]",
		"tunelType: geneve\ntunelType: geneve",
		"serviceCIDRs: [10.96.0.0/16, fd00::/108]\nhealthAddr: '[::1]:9470'\nnodeHealthAddr: ''\n", "--- {}\n---\nmtu: 1400",
		"apiServer: https://[fe80::1%25eth0]:6443", "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']",
		"logLevel: WARN\nlogFormat: json",
		"ovsRunDir: /run/../run", "<<: {mtu: 1400}", "? [a]\n: b", "mtu: null", "\xff", "establishedConnections: keep",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			if c.OVSRunDir != "" {
				t.Errorf("an invalid file gives settings: %+v", c)
			}
			return
		}
		var file strings.Builder
		for _, s := range settings {
			again := Default()
			if err := s.parse(&again, []byte(s.text(c))); err != nil {
				t.Errorf("%s: its text %s does not parse: %v", s.key, s.text(c), err)
			}
			file.WriteString(s.key + ": " + s.text(c) + "\n")
		}
		again, err := Parse([]byte(file.String()))
		if err != nil {
			t.Fatalf("written out:\n%s\n%v", file.String(), err)
		}
		if changes := Diff(c, again); len(changes) > 0 {
			t.Errorf("written out and read, %+v differ", changes)
		}
		live := ApplyLive(Default(), c)
		for _, change := range Diff(live, c) {
			if change.Live {
				t.Errorf("applied live, %+v", change)
			}
		}
	})
}
