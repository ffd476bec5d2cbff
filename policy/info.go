package policy

import "strings"

// Info sums a set up for people.
type Info struct {
	// Rules and Limits count what the files say, without the built-in guards.
	Rules  int `json:"rules"`
	Limits int `json:"limits"`
	// GuardsOff are the built-in guards that are not in force.
	GuardsOff []string `json:"guardsOff,omitempty"`
}

// Info sums the set up.
func (s *Set) Info() Info {
	info := Info{GuardsOff: s.guardsOff}
	for _, r := range s.rules {
		if !r.guard {
			info.Rules++
		}
	}
	for _, l := range s.limits {
		if !strings.HasPrefix(l.Name, guardPrefix) {
			info.Limits++
		}
	}
	return info
}
