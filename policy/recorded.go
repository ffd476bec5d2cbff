package policy

import "slices"

// NeedBody is what DecideRecorded alone hangs on: the body of a request that is
// known without it.
const NeedBody Need = 1 << 7

// DecideRecorded decides as Decide does about a request of which a log tells.
// Where the decision hangs on what the log does not hold, least is what the
// other rules alone make of it, which it can only exceed in strictness (Effect is
// empty when they say nothing), and hangs names the rules that cannot be told.
// Where body is false, what the request would send is not known, and neither are
// the fields that it names.
func (s *Set) DecideRecorded(req Request, body bool) (d, least Decision, hangs []string) {
	f, t := &facts{req: &req}, targetOf(&req)
	defer f.close()
	var sum, told tally
	for _, r := range s.rules {
		if r.shadow || r.match.mismatch(&t, r.effect == Allow) != "" {
			continue
		}
		o := r.evaluate(f, &t)
		if !body && r.when != nil && slices.Contains(r.when.variables, "fields") {
			o = outcome{needs: o.needs | NeedBody}
		}
		sum.add(r, o)
		if o.needs != 0 {
			hangs = append(hangs, r.name)
		} else {
			told.add(r, o)
		}
	}
	d = sum.decision(req.Action)
	d.Digest = s.digest
	if d.Needs == 0 {
		return d, d, nil
	}
	if len(told.allowed)+len(told.approvals) > 0 {
		least = told.decision(req.Action)
	}
	return d, least, hangs
}
