package ofswitch

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
)

// refresh empties the userspace datapath's cache of decisions after every bundle, with versions of Open vSwitch that
// need it.
//
// The cache's entries may overlap as long as they do the same. When a bundle makes them differ, these versions change
// the entry that they find by looking up a packet, which may be another than the one they mean: that one then stays
// as it was while packets use it, an endpoint that is gone or a connection that a policy denies by now. (The others
// look it up by its identity, as the kernel's datapath always has.) Which entries overlap cannot be told cheaply, so
// all of them go. The next packet of each connection makes its entry again.
func (s *Switch) refresh(ctx context.Context) error {
	if !s.userspace || !s.behind {
		return nil
	}
	// The version is asked for each time: another may run since the last bundle.
	version, err := s.appctl(ctx, "version")
	purges := err == nil && changesWrongEntry(version)
	if purges {
		_, err = s.appctl(ctx, "revalidator/purge")
	}
	if err != nil {
		return fmt.Errorf("empty the datapath's cache, which may keep what was changed: %w", err)
	}
	s.behind = false
	s.purging.Store(purges)
	if purges {
		s.purges.Add(1)
	}
	return nil
}

// PurgesCache says whether the datapath's cache was emptied after the last bundle, and so is after the next.
func (s *Switch) PurgesCache() bool { return s.purging.Load() }

// Purges counts how often the datapath's cache was emptied.
func (s *Switch) Purges() uint64 { return s.purges.Load() }

// releaseText finds the version in what a daemon says of itself: "ovs-vswitchd (Open vSwitch) 3.1.0".
var releaseText = regexp.MustCompile(`\(Open vSwitch[^)]*\) (\d+)\.(\d+)\.(\d+)`)

// firstRight is the first release of each older branch whose userspace datapath changes the entry that it means: that
// with the change "dpif-netdev: Fix dpif_netdev_flow_put." (commit 21410ff80 of Open vSwitch, of August 2023). All
// branches since 3.2 have it.
var firstRight = map[[2]int]int{{2, 17}: 8, {3, 0}: 5, {3, 1}: 3}

// changesWrongEntry says whether a version of ovs-vswitchd may change another cache entry than the one it means. An
// unknown one may.
func changesWrongEntry(version string) bool {
	release, ok := parseRelease(version)
	if !ok {
		return true
	}
	if patch, ok := firstRight[[2]int{release[0], release[1]}]; ok {
		return release[2] < patch
	}
	return release[0] < 3
}

// parseRelease finds the release in what a daemon says of itself.
func parseRelease(version string) (release [3]int, ok bool) {
	m := releaseText.FindStringSubmatch(version)
	if m == nil {
		return release, false
	}
	for i := range release {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return release, false
		}
		release[i] = n
	}
	return release, true
}
