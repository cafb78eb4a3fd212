package ofswitch

import "testing"

func TestChangesWrongEntry(t *testing.T) {
	for version, want := range map[string]bool{
		"ovs-vswitchd (Open vSwitch) 2.13.8":                   true,
		"ovs-vswitchd (Open vSwitch) 2.17.7":                   true,
		"ovs-vswitchd (Open vSwitch) 2.17.8":                   false,
		"ovs-vswitchd (Open vSwitch) 2.17.12":                  false,
		"ovs-vswitchd (Open vSwitch) 3.0.4":                    true,
		"ovs-vswitchd (Open vSwitch) 3.0.5":                    false,
		"ovs-vswitchd (Open vSwitch) 3.1.0":                    true,
		"ovs-vswitchd (Open vSwitch) 3.1.2\n":                  true,
		"ovs-vswitchd (Open vSwitch) 3.1.3\nDPDK 22.11.1":      false,
		"ovs-vswitchd (Open vSwitch) 3.1.10":                   false,
		"ovs-vswitchd (Open vSwitch) 3.2.0":                    false,
		"ovs-vswitchd (Open vSwitch) 3.3.0-2ubuntu1":           false,
		"ovs-vswitchd (Open vSwitch) 4.0.90":                   false,
		"ovs-vswitchd (Open vSwitch) 99999999999999999999.0.0": true,
		"ovs-vswitchd (Open vSwitch) 3.2":                      true,
		"3.2.0":                                                true,
		"":                                                     true,
	} {
		if got := changesWrongEntry(version); got != want {
			t.Errorf("%q: %t, want %t", version, got, want)
		}
	}
}
