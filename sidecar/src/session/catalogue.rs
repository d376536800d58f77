//! `COMMAND`: what the server has, and what it cannot know of: this product's own commands.

use caddy_resp::Protocol;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending},
    relaying::effect,
};
use crate::commands::{Question, Row, catalogued_keys};

impl Conversation {
    /// `COMMAND` and its subcommands.
    pub(super) fn about_commands(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let protocol: Protocol = self.client.protocol;
        if let Some(reply) = catalogued_keys(protocol, args.len(), |index| args.get(index)) {
            self.reply(|out| out.extend_from_slice(&reply));
            return Flow::Done;
        }
        let question = Question::of(args.len(), |index| args.get(index));
        let pending = question.map_or(Pending::Relayed, |question| Pending::AboutCommands(Box::new(question)));
        self.relay(row, args, effect(row, args), pending)
    }
}
