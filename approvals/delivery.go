package approvals

import (
	"regexp"
	"time"
)

// SlackChannel is how Slack writes the ids of channels, public and private; ids of
// people, and names, do not look so.
var SlackChannel = regexp.MustCompile(`^[CG][A-Z0-9]{2,20}$`)

// Delivery is what a messenger, such as Slack, has been told of an Operation.
// It is stored, so that a restart finds what was not sent or is out of date.
type Delivery struct {
	Op string `json:"op"`
	// Revision is that of the Operation which every message shows.
	Revision uint64    `json:"revision"`
	Messages []Message `json:"messages,omitempty"`
	// Reminded is true once the reminder before the end has been begun: at most one is sent.
	Reminded bool `json:"reminded,omitempty"`
}

// Message is one message about an Operation.
type Message struct {
	// To is whom it is for: a channel, or a person whom the agent acts for.
	To     string `json:"to"`
	Direct bool   `json:"direct,omitempty"`
	// Channel and Timestamp name it in Slack. Channel differs from To in a direct
	// message. Without a Timestamp it is not known whether it was sent.
	Channel   string `json:"channel,omitempty"`
	Timestamp string `json:"timestamp,omitempty"`
	// Begun is when sending it was begun, by the messenger's clock; zero when it was not.
	Begun time.Time `json:"begun,omitzero"`
	// Revision is that of the Operation which it shows.
	Revision uint64 `json:"revision,omitempty"`
	// Told says that the outcome was begun to be told below it.
	Told bool `json:"told,omitempty"`
}
