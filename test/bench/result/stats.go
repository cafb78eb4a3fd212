package result

import (
	"math"
	"slices"
)

// Summary is what counts of several values.
type Summary struct {
	N                        int
	Min, Q1, Median, Q3, Max float64
}

// Quantile is the value below which the share q of the values lies, 0 to 1, interpolated between the two nearest
// (method 7 of Hyndman and Fan, as in R and NumPy). It is NaN without values.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	if low >= len(sorted)-1 {
		return sorted[len(sorted)-1]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// Summarize computes the summary of values.
func Summarize(values []float64) Summary {
	return Summary{N: len(values), Min: Quantile(values, 0), Q1: Quantile(values, 0.25), Median: Quantile(values, 0.5),
		Q3: Quantile(values, 0.75), Max: Quantile(values, 1)}
}

// Summary is that of a series.
func (s Series) Summary() Summary {
	values := make([]float64, len(s.Samples))
	for i, sample := range s.Samples {
		values[i] = sample.Value
	}
	return Summarize(values)
}

// Ratios divides each round's value of s by that of another series. Rounds that one of them lacks are left out. What
// else the machine does changes from round to round, and less within one.
func (s Series) Ratios(by Series) []float64 {
	var ratios []float64
	for _, sample := range s.Samples {
		i := slices.IndexFunc(by.Samples, func(other Sample) bool { return other.Round == sample.Round })
		if i >= 0 && by.Samples[i].Value > 0 {
			ratios = append(ratios, sample.Value/by.Samples[i].Value)
		}
	}
	return ratios
}
