package config_test

import (
	"testing"

	"github.com/weft-cni/weft/pkg/config"
)

func TestApplyLive(t *testing.T) {
	next, err := config.Parse([]byte("tunnelType: vxlan\nmtu: 1400\negressMasquerade: false\nnonMasqueradeCIDRs: " +
		"[192.168.0.0/16]\nlogLevel: debug\n" +
		"datapath: netdev\napiServer: https://10.0.0.1:6443\nlogFormat: json\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Diff(config.ApplyLive(config.Default(), next), next) {
		if c.Live {
			t.Errorf("%s is still %s, want %s", c.Key, c.Old, c.New)
		}
	}
	for _, c := range config.Diff(config.Default(), config.ApplyLive(config.Default(), next)) {
		if !c.Live {
			t.Errorf("%s changed to %s without a restart", c.Key, c.New)
		}
	}
	if got := len(config.Diff(config.ApplyLive(config.Default(), next), next)); got != 3 {
		t.Errorf("%d settings wait for a restart, want datapath, apiServer and logFormat", got)
	}
}
