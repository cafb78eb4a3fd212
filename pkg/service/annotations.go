package service

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// The annotations of a Service that select how its connections are balanced; docs/services.md explains them.
const (
	BalanceAnnotation = "weft.dev/balance"
	WeightsAnnotation = "weft.dev/endpoint-weights"
)

// maxWeight bounds a group's buckets: there are at most as many as the sum of the weights.
const maxWeight = 100

// ParseBalance parses the value of BalanceAnnotation. The algorithm is the default for an empty value, and with an
// error.
func ParseBalance(value string) (model.Algorithm, error) {
	switch a := model.Algorithm(value); a {
	case model.HashConnection, model.HashSource:
		return a, nil
	case "":
		return model.HashConnection, nil
	}
	return model.HashConnection, fmt.Errorf("annotation %s: %q is neither %s nor %s; %s is used",
		BalanceAnnotation, value, model.HashConnection, model.HashSource, model.HashConnection)
}

// ParseWeights parses the value of WeightsAnnotation: POD=WEIGHT entries, separated by commas. Each error is about one
// entry; the valid entries are returned with it.
func ParseWeights(value string) (map[string]uint16, []error) {
	if strings.TrimSpace(value) == "" {
		return nil, nil
	}
	weights := map[string]uint16{}
	var bad []error
	for entry := range strings.SplitSeq(value, ",") {
		pod, text, ok := strings.Cut(strings.TrimSpace(entry), "=")
		pod, text = strings.TrimSpace(pod), strings.TrimSpace(text)
		weight, err := strconv.ParseUint(text, 10, 16)
		switch _, twice := weights[pod]; {
		case !ok || pod == "":
			bad = append(bad, fmt.Errorf("annotation %s: %q is not POD=WEIGHT", WeightsAnnotation, entry))
		case err != nil || weight < 1 || weight > maxWeight:
			bad = append(bad, fmt.Errorf(
				"annotation %s: the weight of pod %s is %q, which is not a number from 1 to %d; 1 is used",
				WeightsAnnotation, pod, text, maxWeight))
		case twice:
			bad = append(bad, fmt.Errorf("annotation %s: pod %s has two weights; the first, %d, is used",
				WeightsAnnotation, pod, weights[pod]))
		default:
			weights[pod] = uint16(weight)
		}
	}
	return weights, bad
}
