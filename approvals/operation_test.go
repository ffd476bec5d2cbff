package approvals

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
)

var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// steps is the state machine as docs/design.md draws it.
const steps = `
                 -> DENIED PENDING_APPROVAL EXECUTING
PENDING_APPROVAL -> AUTHORIZED REJECTED EXPIRED CANCELLED STALE
AUTHORIZED       -> EXECUTING DENIED EXPIRED CANCELLED STALE
EXECUTING        -> SUCCEEDED FAILED PARTIAL UNKNOWN
UNKNOWN          -> RECONCILED
`

var states = []State{"", PendingApproval, Authorized, Executing, Unknown, Denied, Rejected, Expired, Cancelled, Stale, Succeeded, Failed, Partial, Reconciled}

func TestEveryStep(t *testing.T) {
	allowed := map[State][]string{}
	for line := range strings.Lines(strings.TrimPrefix(steps, "\n")) {
		from, to, _ := strings.Cut(line, "->")
		allowed[State(strings.TrimSpace(from))] = strings.Fields(to)
	}
	for _, from := range states {
		if from.Open() != (allowed[from] != nil) {
			t.Errorf("%q is open: %v", from, from.Open())
		}
		for _, to := range states {
			before := Operation{ID: "op", State: from, Revision: 3, Updated: noon}
			after, err := before.To(to, noon.Add(time.Minute))
			if slices.Contains(allowed[from], string(to)) {
				want := before
				want.State, want.Updated = to, noon.Add(time.Minute)
				if err != nil || !reflect.DeepEqual(after, want) {
					t.Errorf("%q to %q: %+v, %v", from, to, after, err)
				}
			} else if err == nil || !reflect.DeepEqual(after, before) {
				t.Errorf("%q to %q: %+v, %v; want no change and an error", from, to, after, err)
			}
		}
	}
}

// pending is an operation that waits until one, for two people of sre or
// platform and one of security who says why.
func pending() Operation {
	return Operation{
		ID: "op", State: PendingApproval, Revision: 1, Expires: noon.Add(time.Hour),
		Principal: action.Principal{Username: "bot", OnBehalfOf: "anna"},
		Requirements: []Requirement{
			{Rule: "two", Approvers: []string{"sre", "platform"}, Count: 2},
			{Rule: "one", Approvers: []string{"security"}, Count: 1, ReasonRequired: true},
		},
	}
}

func person(id string, sets ...string) Person { return Person{ID: "local:" + id, Name: id, Sets: sets} }

// A vote is cast by "NAME[SETS] yes|no REASON"; the words after it say what
// became of it: a state, or the error that refused it.
func TestVotes(t *testing.T) {
	refusals := map[string]error{"not-pending": ErrNotPending, "not-approver": ErrNotApprover, "self": ErrSelfApproval, "voted": ErrVoted, "reason": ErrReason}
	for _, row := range []struct {
		name  string
		votes []string
	}{
		{"everything met", []string{"bea[sre] yes : PENDING_APPROVAL", "carl[platform] yes : PENDING_APPROVAL", "dora[security] yes planned : AUTHORIZED"}},
		{"in another order", []string{"dora[security] yes planned : PENDING_APPROVAL", "carl[platform] yes : PENDING_APPROVAL", "bea[sre] yes : AUTHORIZED"}},
		{"one person for two requirements", []string{"bea[sre,security] yes planned : PENDING_APPROVAL", "carl[sre] yes : AUTHORIZED"}},
		{"one person in two sets is one vote", []string{"bea[sre,platform] yes : PENDING_APPROVAL", "dora[security] yes planned : PENDING_APPROVAL"}},
		{"nobody votes twice", []string{"bea[sre] yes : PENDING_APPROVAL", "bea[sre] yes : voted", "bea[platform] yes again : voted", "bea[sre] no changed my mind : voted"}},
		{"more than enough of one", []string{"bea[sre] yes : PENDING_APPROVAL", "carl[sre] yes : PENDING_APPROVAL", "emil[sre] yes : PENDING_APPROVAL", "dora[security] yes ok : AUTHORIZED"}},
		{"in no set", []string{"fred[] yes : not-approver", "fred[admins] yes : not-approver", "fred[SRE] yes : not-approver", "fred[] no because : not-approver"}},
		{"for whom the agent acts", []string{"anna[sre] yes : self", "anna[security] yes because : self", "anna[sre] no because : self"}},
		{"who is the caller", []string{"bot[sre] yes : self"}},
		{"a reason where one is required", []string{"dora[security] yes : reason", "dora[security] yes \t : reason", "dora[sre,security] yes : reason", "dora[security] yes planned : PENDING_APPROVAL"}},
		{"no reason where none is", []string{"bea[sre] yes : PENDING_APPROVAL"}},
		{"a rejection needs a reason", []string{"bea[sre] no : reason", "bea[sre] no not now : REJECTED"}},
		{"one rejection ends it", []string{"bea[sre] yes : PENDING_APPROVAL", "carl[platform] no not now : REJECTED", "dora[security] yes planned : not-pending", "emil[sre] no why : not-pending"}},
		{"decided is decided", []string{"bea[sre,security] yes ok : PENDING_APPROVAL", "carl[sre] yes : AUTHORIZED", "emil[sre] no stop : not-pending", "emil[sre] yes : not-pending"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			op := pending()
			for _, vote := range row.votes {
				ballot, want, _ := strings.Cut(vote, " : ")
				who, rest, _ := strings.Cut(ballot, "] ")
				name, sets, _ := strings.Cut(who, "[")
				answer, reason, _ := strings.Cut(rest, " ")
				p := person(name, strings.FieldsFunc(sets, func(r rune) bool { return r == ',' })...)

				before, votes := op, len(op.Votes)
				after, err := op.Vote(p, Ballot{Approve: answer == "yes", Reason: reason}, noon)
				if refusal := refusals[want]; refusal != nil {
					if !errors.Is(err, refusal) || !reflect.DeepEqual(after, before) {
						t.Fatalf("%s: %+v, %v; want no change and %v", vote, after, err, refusal)
					}
					continue
				}
				if err != nil || string(after.State) != want || len(after.Votes) != votes+1 {
					t.Fatalf("%s: %s, %v", vote, after.State, err)
				}
				if cast := after.Votes[votes]; !reflect.DeepEqual(cast, Vote{Person: p, Ballot: Ballot{Approve: answer == "yes", Reason: reason}, Time: noon}) {
					t.Errorf("%s: the vote is kept as %+v", vote, cast)
				}
				if after.State == Rejected && after.Reason != reason {
					t.Errorf("%s: the agent is told %q", vote, after.Reason)
				}
				if len(before.Votes) != votes || after.Updated != noon || after.Revision != before.Revision {
					t.Errorf("%s: before %+v, after %+v", vote, before, after)
				}
				op = after
			}
		})
	}
}

func TestVoteWhen(t *testing.T) {
	for at, want := range map[time.Time]error{
		noon.Add(time.Hour - 1):  nil,
		noon.Add(time.Hour):      ErrNotPending, // the end is not part of the time
		noon.Add(24 * time.Hour): ErrNotPending,
	} {
		if _, err := pending().Vote(person("bea", "sre"), Ballot{Approve: true}, at); !errors.Is(err, want) {
			t.Errorf("at %s: %v; want %v", at, err, want)
		}
	}
	for _, state := range states {
		op := pending()
		op.State = state
		if _, err := op.Vote(person("bea", "sre"), Ballot{Approve: true}, noon); (err == nil) != (state == PendingApproval) {
			t.Errorf("in state %q: %v", state, err)
		}
	}
	op := pending()
	op.Requirements = nil
	if after, err := op.Vote(person("bea", "sre"), Ballot{Approve: true}, noon); !errors.Is(err, ErrNotApprover) {
		t.Errorf("with nobody to ask: %s, %v", after.State, err)
	}
}

// Two copies of an operation, as two replicas load it, share no memory: a vote
// on one is no vote on the other.
func TestVoteDoesNotTouchOtherCopies(t *testing.T) {
	op := pending()
	op.Votes = make([]Vote, 0, 8)
	one, err1 := op.Vote(person("bea", "sre"), Ballot{Approve: true}, noon)
	two, err2 := op.Vote(person("carl", "platform"), Ballot{Approve: true}, noon)
	if err1 != nil || err2 != nil || one.Votes[0].Person.Name != "bea" || two.Votes[0].Person.Name != "carl" {
		t.Errorf("%v, %v: %+v and %+v", err1, err2, one.Votes, two.Votes)
	}
}

func TestMissingAndBy(t *testing.T) {
	op := pending()
	for _, row := range []struct {
		person  Person
		approve bool
		missing int
		by      int
	}{
		{person("zoe"), false, 2, 0}, // somebody without a set, and a rejection: neither counts
		{person("dora", "security"), true, 2, 1},
		{person("bea", "sre"), true, 1, 2},
		{person("gina", "sre"), false, 1, 2},
		{person("carl", "platform"), true, 0, 3},
		{person("emil", "sre"), true, 0, 4},
	} {
		op.Votes = append(op.Votes, Vote{Person: row.person, Ballot: Ballot{Approve: row.approve}})
		if op.Missing() != row.missing || len(op.By()) != row.by {
			t.Errorf("after %s: %d missing, by %v", row.person.Name, op.Missing(), op.By())
		}
	}
	if by := strings.Join(op.By(), "; "); by != "dora (local:dora); bea (local:bea); carl (local:carl); emil (local:emil)" {
		t.Errorf("approved by %s", by)
	}
	if n := (Operation{}).Missing(); n != 0 {
		t.Errorf("%d missing where nothing is required", n)
	}
}

// The shortest requirement closes the question.
func TestExpiry(t *testing.T) {
	for _, row := range []struct {
		minutes []int
		want    time.Time
	}{
		{nil, time.Time{}}, {[]int{15}, noon.Add(15 * time.Minute)}, {[]int{60, 15, 30}, noon.Add(15 * time.Minute)},
	} {
		var requirements []Requirement
		for _, m := range row.minutes {
			requirements = append(requirements, Requirement{Expires: time.Duration(m) * time.Minute})
		}
		if got := Expiry(requirements, noon); !got.Equal(row.want) {
			t.Errorf("%v: %s; want %s", row.minutes, got, row.want)
		}
	}
}

// The texts tell an approver what to do about a refusal.
func TestRefusalTexts(t *testing.T) {
	op := pending()
	op.Votes = []Vote{{Person: person("bea", "sre"), Ballot: Ballot{Approve: true}}}
	for _, row := range []struct {
		person  Person
		approve bool
		want    string
	}{
		{person("fred"), true, "not an approver: fred is in none of the sets that may decide this: [sre platform security]"},
		{person("anna", "sre"), true, "own request: the agent acts on behalf of anna; somebody else has to decide"},
		{person("bea", "sre"), true, "already voted: bea"},
		{person("carl", "sre"), false, "reason required: say why (--reason on the command line)"},
	} {
		if _, err := op.Vote(row.person, Ballot{Approve: row.approve}, noon); fmt.Sprint(err) != row.want {
			t.Errorf("got %v; want %s", err, row.want)
		}
	}
}
